"""Many processes at one tracking store, none of which waits for another to be done."""

import os
from functools import partial
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from fashion.data.dataset import Dataset
from tests.conftest import TrackingServer
from tests.processes import Process


def finish(process: Process) -> str:
    """Return its output, once it has ended."""
    output = process.communicate()
    assert "locked" not in output
    assert "Traceback" not in output, output
    return output


@pytest.mark.slow(seconds=100)  # test_shared_server.py has two trainings at once at a server
@pytest.mark.parametrize("store", ["server", "sqlite"])
def test_nothing_is_lost_between_processes_at_one_store(
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    store: str,
) -> None:
    """They start on a database without tables, or at a server on PostgreSQL."""
    name, trainings, registrations = "at-once", 6, 3
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    if store == "server":
        server: TrackingServer = request.getfixturevalue("tracking_server")
        variables = server.env
    variables |= {"MLFLOW_EXPERIMENT_NAME": name, "FASHION_STATE_DIR": str(tmp_path / "state")}
    environment = {key: value for key, value in os.environ.items() if "MLFLOW" not in key}
    # Nine processes on few cores: threads that spin would starve each other.
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    start = partial(Process, cwd=tmp_path, env=environment)

    train = ("entrypoints.train", "--model", "baseline", "--epochs", "2", "--seed")
    # Without the test of significance, the best becomes champion in whatever order they come.
    register = ("entrypoints.register", "--model", "baseline", "--name", name, "--min-p", "1")
    training = [start(*train, str(seed)) for seed in range(trainings)]
    first = training.pop(0)
    output = finish(first)
    assert first.returncode == 0, output
    # Now there is something to register, while others still train.
    processes = [*training, *(start(*register) for _ in range(registrations))]
    for process in processes:
        output = finish(process)
        assert process.returncode == 0, output
    last = start(*register)
    output = finish(last)
    assert last.returncode == 0, output
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    mlflow.set_tracking_uri(variables["MLFLOW_TRACKING_URI"])

    runs = mlflow.search_runs(experiment_names=[name], output_format="list")
    assert {run.data.params["seed"] for run in runs} == set(map(str, range(trainings)))
    assert {run.info.status for run in runs} == {"FINISHED"}
    client = MlflowClient()
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [point.step for point in history] == [1, 2]
        assert len(run.outputs.model_outputs) == 1
        assert "confusion_matrix.png" in {
            file.path for file in client.list_artifacts(run.info.run_id)
        }
    versions = client.search_model_versions(f"name = '{name}'")
    registered = [version.run_id for version in versions]
    assert len(registered) == len(set(registered))
    best = max(runs, key=lambda run: run.data.metrics["val_accuracy"])
    champion = client.get_model_version_by_alias(name, "champion")
    assert champion.run_id == best.info.run_id
