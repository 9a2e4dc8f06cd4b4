"""Errors of the tracking store are one line that tells the cause, no secret, and what to do."""

import logging
import pwd
import time
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from filelock import FileLock

from entrypoints.close import close
from entrypoints.compare import compare
from entrypoints.train import train
from fashion.errors import TrackingError
from fashion.tracking import store as tracking_store
from fashion.tracking.store import connect, reason, without_credentials
from fashion.training import distributed
from tests.conftest import assert_one_line, free_port


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hun/ter@db/runs",
        "postgresql+psycopg://me:hun@ter@db:5432/runs",
        "postgresql://db/runs?user=me&password=hun/ter",
        "postgresql://db/runs?sslpassword=hun'ter&access_token=hunter",
        "https://:hunter@db",
        "postgresql://me:hun'ter@db/runs",
    ],
)
def test_no_password_is_shown(uri: str) -> None:
    shown = without_credentials(f"cannot connect to '{uri}' now")
    assert "ter" not in shown
    assert shown.startswith("cannot connect to '")
    assert shown.endswith("' now")
    assert "db" in shown


def test_a_password_with_a_space_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "postgresql://me:hun ter@db/runs"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    assert without_credentials(f"no route to {uri}") == "no route to postgresql://***@db/runs"


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (
            "(raised as a result of Query-invoked autoflush; consider using a no_autoflush block)\n"
            "(sqlite3.OperationalError) attempt to write a readonly database\n[SQL: INSERT]",
            "(sqlite3.OperationalError) attempt to write a readonly database",
        ),
        (
            "x" * 200 + " run `mlflow migrate-filestore`",
            "x" * 200 + " run `mlflow migrate-filestore`",
        ),
        ("word " * 200, ("word " * 200)[:395].strip() + " ..."),
        ("", "ValueError"),
    ],
)
def test_the_cause_is_kept(message: str, cause: str) -> None:
    assert reason(ValueError(message)) == cause


def test_a_database_that_refuses_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it was tried again"))
    port = free_port()
    uri = f"postgresql+psycopg://me:secret@127.0.0.1:{port}/runs"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: uri)
    with pytest.raises(TrackingError, match=r"Connection refused.*: start it") as raised:
        connect()
    assert "secret" not in str(raised.value)


def test_a_lock_that_another_process_holds_is_said_and_not_waited_for_for_ever(
    store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    connect()
    (path,) = (tracking_store.state_dir() / "locks").glob("*.lock")
    monkeypatch.setattr(tracking_store, "SILENT_SECONDS", 0.01)
    monkeypatch.setattr(tracking_store, "LOCK_SECONDS", 0.02)
    with (
        caplog.at_level(logging.WARNING),
        FileLock(path),
        pytest.raises(TrackingError, match=str(path)),
    ):
        connect()
    assert "Waiting for another process" in caplog.text
    connect()


def test_the_advice_fits_a_deleted_experiment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow.delete_experiment(mlflow.create_experiment("gone"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "gone")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    message = assert_one_line(CliRunner().invoke(train, ["--model", "baseline"]))
    assert "mlflow experiments restore" in message
    assert "start it" not in message


def test_a_query_creates_no_experiment(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mistyped")
    message = assert_one_line(CliRunner().invoke(compare, []))
    assert "no experiment 'mistyped'" in message
    assert mlflow.get_experiment_by_name("mistyped") is None


def test_a_user_without_a_name_can_run_commands(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("LNAME", "USER", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOGNAME", "")
    assert CliRunner().invoke(close).exit_code == 0
    with mlflow.start_run() as run:
        pass
    assert run.data.tags["mlflow.user"].startswith("uid-")


def test_the_backend_of_a_notebook_does_not_matter(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    result = CliRunner().invoke(compare, ["--log"])
    assert result.exit_code == 0, result.output


def test_a_leftover_of_torchrun_is_no_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "left over")
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
