"""How a run ends does not depend on its output, nor on the run that MLflow holds to be active."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from entrypoints.close import close as close_command
from entrypoints.train import train as train_command
from fashion.errors import TrackingError
from fashion.tracking import checkpoint, runs
from tests.conftest import assert_one_line


def all_runs() -> list[Run]:
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


@pytest.mark.parametrize(
    ("error", "status"), [(MlflowException("HTTP 403"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_an_end_that_was_refused_or_interrupted_marks_this_run_and_no_other(
    store: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    set_terminated, errors = MlflowClient.set_terminated, iter([error])

    def set_terminated_later(client: MlflowClient, *arguments: object) -> None:
        for each in errors:
            raise each
        set_terminated(client, *arguments)

    with runs.running(name="parent") as parent:
        monkeypatch.setattr(MlflowClient, "set_terminated", set_terminated_later)
        with pytest.raises((TrackingError, KeyboardInterrupt)), runs.running(nested=True) as run:
            pass
        ended = mlflow.get_run(run.info.run_id)
        assert ended.info.status == status
        assert "failure" in ended.data.tags
        assert mlflow.active_run().info.run_id == parent.info.run_id
    assert mlflow.get_run(parent.info.run_id).info.status == "FINISHED"
    assert "failure" not in mlflow.get_run(parent.info.run_id).data.tags
    assert len(all_runs()) == 2


@pytest.fixture
def opened_by_mlflow(store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return a function that opens a run as `mlflow run` does before it starts the command."""

    def open_run(name: str | None = None) -> str:
        experiment = mlflow.get_experiment_by_name("test").experiment_id
        run_id = MlflowClient().create_run(experiment, run_name=name).info.run_id
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
        return run_id

    return open_run


@pytest.mark.parametrize(
    ("given", "shown"), [(None, "cnn"), ("mine", "mine"), ("my-run-1", "my-run-1")]
)
def test_a_name_that_a_person_chose_is_kept(
    opened_by_mlflow: Callable[..., str], given: str | None, shown: str
) -> None:
    run_id = opened_by_mlflow(given)
    with runs.running(name="cnn"):
        pass
    assert mlflow.get_run(run_id).info.run_name == shown


def test_a_run_that_was_used_is_not_overwritten(
    opened_by_mlflow: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = opened_by_mlflow("mine")
    with runs.running():
        mlflow.log_metric("val_accuracy", 0.5)
    before = mlflow.get_run(run_id).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    message = assert_one_line(CliRunner().invoke(train_command, ["--model", "baseline"]))
    assert f"run {run_id} has been used already (FINISHED)" in message
    after = mlflow.get_run(run_id).to_dictionary()
    assert after["info"]["status"] == "FINISHED"
    assert after["data"]["metrics"] == before["data"]["metrics"]
    assert len(all_runs()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--modle", "cnn"], "--modle"),
        (["--epochs", "three"], "'three' is not a valid"),
        (["--model", "CNN"], "'CNN' is not one of"),
    ],
)
def test_a_refused_command_says_why_in_the_run_that_mlflow_opened(
    opened_by_mlflow: Callable[..., str], arguments: list[str], said: str
) -> None:
    run_id = opened_by_mlflow()
    assert CliRunner().invoke(train_command, arguments).exit_code == 2
    run = mlflow.get_run(run_id)
    assert said in run.data.tags["failure"]
    assert run.info.run_name == "train, refused"


def test_a_store_that_takes_no_artifacts_is_said_before_training(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store / "file").touch()
    mlflow.create_experiment("elsewhere", artifact_location=str(store / "file" / "below"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    mlflow.set_experiment("elsewhere")
    message = assert_one_line(CliRunner().invoke(train_command, ["--model", "baseline"]))
    assert "its artifacts cannot be stored" in message
    (run,) = all_runs()
    assert run.info.status == "FAILED"


def test_a_run_that_never_began_is_named_and_can_be_closed(store: Path) -> None:
    experiment = mlflow.get_experiment_by_name("test").experiment_id
    tags = {"mlflow.project.entryPoint": "train"}
    run_id = MlflowClient().create_run(experiment, tags=tags).info.run_id
    named = CliRunner().invoke(close_command).stdout
    assert named.startswith(f"{run_id}: opened by mlflow run, but not begun")
    (*_, option, value) = named.split()
    assert CliRunner().invoke(close_command, [option, value]).stdout == f"{run_id}: closed\n"
    assert mlflow.get_run(run_id).info.status == "KILLED"
    assert CliRunner().invoke(close_command).stdout == ""
    again = assert_one_line(CliRunner().invoke(close_command, [option, value]))
    assert "is not RUNNING but KILLED" in again


def test_what_is_kept_of_runs_is_listed_and_forgotten(store: Path) -> None:
    run_id = "0123456789abcdef" * 2
    with checkpoint.held(run_id):
        checkpoint.save(run_id, {"epochs": []})
    kept = CliRunner().invoke(close_command, ["--kept"]).stdout
    assert kept.endswith(f"  python -m entrypoints.train --resume {run_id}\n")
    assert CliRunner().invoke(close_command, ["--forget", run_id[:8]]).exit_code == 0
    assert CliRunner().invoke(close_command, ["--kept"]).stdout == ""
