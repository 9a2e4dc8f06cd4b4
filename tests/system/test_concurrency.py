"""Many processes at one tracking store, none of which waits for another to be done."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from fashion.data.dataset import FashionMNIST
from tests.conftest import HANG_SECONDS, ROOT, TrackingServer

TRAININGS, REGISTRATIONS = 8, 4
NAME = "at-once"


@pytest.mark.slow
@pytest.mark.parametrize("store", ["sqlite", "server"])
def test_nothing_is_lost_between_processes_at_one_store(
    dataset: FashionMNIST,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    store: str,
) -> None:
    """They start on a database without tables, or at a server on PostgreSQL."""
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    if store == "server":
        server: TrackingServer = request.getfixturevalue("tracking_server")
        variables = server.env
    variables |= {"MLFLOW_EXPERIMENT_NAME": NAME, "FASHION_STATE_DIR": str(tmp_path / "state")}
    environment = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    # Twelve processes on few cores: threads that spin would starve each other.
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}

    def start(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=HANG_SECONDS)
        assert "locked" not in output
        assert "Traceback" not in output, output
        return output

    def register() -> int:
        """Return how many attempts it took: at first there is nothing to register."""
        for attempt in range(1, 100):
            process = start("entrypoints.register", "--model", "baseline", "--name", NAME)
            output = finish(process)
            if process.returncode == 0:
                return attempt
            assert output.splitlines()[-1].startswith("Error: no finished baseline run"), output
            time.sleep(5)  # or those who wait would starve those who train
        raise AssertionError("nothing to register")

    train = ("entrypoints.train", "--model", "baseline", "--epochs", "2", "--seed")
    with ThreadPoolExecutor() as pool:
        trainings = [start(*train, str(seed)) for seed in range(TRAININGS)]
        registrations = [pool.submit(register) for _ in range(REGISTRATIONS)]
        for process in trainings:
            output = finish(process)
            assert process.returncode == 0, output
        for registration in registrations:
            registration.result()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(variables["MLFLOW_TRACKING_URI"])
    register()

    runs = mlflow.search_runs(experiment_names=[NAME], output_format="list")
    assert {run.data.params["seed"] for run in runs} == set(map(str, range(TRAININGS)))
    assert {run.info.status for run in runs} == {"FINISHED"}
    client = MlflowClient()
    for run in runs:
        history = client.get_metric_history(run.info.run_id, "val_accuracy")
        assert [point.step for point in history] == [1, 2]
        assert len(run.outputs.model_outputs) == 1
        assert "confusion_matrix.png" in {
            file.path for file in client.list_artifacts(run.info.run_id)
        }
    versions = client.search_model_versions(f"name = '{NAME}'")
    registered = [version.tags["run_id"] for version in versions]
    assert len(registered) == len(set(registered))
    best = max(runs, key=lambda run: run.data.metrics["val_accuracy"])
    champion = client.get_model_version_by_alias(NAME, "champion")
    assert champion.tags["run_id"] == best.info.run_id
