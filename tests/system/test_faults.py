"""What breaks from outside: processes that are killed, and a tracking server that goes away."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import psutil
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from fashion.data.dataset import Dataset
from fashion.errors import TrackingError
from fashion.tracking import checkpoint, models
from fashion.tracking.store import refusals
from tests.conftest import HANG_SECONDS, ROOT
from tests.processes import Process
from tests.server import Server

Start = Callable[..., Process]
BASELINE = ("train", "--model", "baseline")


def wait_for(process: Process | subprocess.Popen[str], text: str) -> None:
    """Read the output up to a line with `text`."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return
    raise AssertionError(f"no {text!r} in: {''.join(lines)}")


def the_run() -> Run:
    (run,) = mlflow.search_runs(output_format="list")
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return models.load(models.model_uri(run)).state_dict()


def assert_complete(run: Run, epochs: int) -> None:
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    for metric in ("train_loss", "train_accuracy", "val_loss", "val_accuracy"):
        history = MlflowClient().get_metric_history(run.info.run_id, metric)
        assert [point.step for point in history] == list(range(1, epochs + 1)), metric
    assert len(MlflowClient().get_metric_history(run.info.run_id, "test_accuracy")) == 1
    assert len(run.outputs.model_outputs) == 1
    assert checkpoint.unfinished() == []


@pytest.mark.timeout(3600)  # with many rounds
def test_kill_at_random_moments_loses_nothing(
    start: Start, command: Callable, store: Path, rounds: int
) -> None:
    """kill -9, `rounds` times; runs end with the weights of one that was left alone."""
    settings = (*BASELINE, "--epochs", "12", "--batch-size", "64")
    assert command(*settings).returncode == 0
    undisturbed = the_run()
    duration = (undisturbed.info.end_time - undisturbed.info.start_time) / 1000
    draw, kills = random.Random(rounds), 0
    while kills < rounds:
        known = any(map(checkpoint.exists, checkpoint.unfinished()))
        process = start(*settings, *(["--resume", "latest"] if known else []))
        if not known:  # it lives long enough to leave a checkpoint
            wait_for(process, "epoch 1/")
        process.wait(timeout=draw.uniform(0, duration))
        process.kill()
        # It may have been sooner than we; the next one is a new run then.
        kills += process.returncode == -signal.SIGKILL
    if any(map(checkpoint.exists, checkpoint.unfinished())):
        (run_id,) = checkpoint.unfinished()
        closed = command("close").stdout.startswith(run_id)
        # It says FINISHED where all that was left to do was to delete the checkpoint.
        assert mlflow.get_run(run_id).info.status == ("KILLED" if closed else "FINISHED")
        done = command(*settings, "--resume", run_id)
        assert done.returncode == 0, done.stderr
    expected = weights(undisturbed)
    *resumed, other = mlflow.search_runs(output_format="list")
    assert other.info.run_id == undisturbed.info.run_id
    assert resumed
    print(f"killed {kills} times, {len(resumed)} runs")
    for run in resumed:
        assert_complete(run, epochs=12)
        for name, tensor in weights(run).items():
            assert torch.equal(tensor, expected[name])
        for metric in ("train_loss", "val_loss", "test_loss", "test_accuracy"):
            assert run.data.metrics[metric] == undisturbed.data.metrics[metric]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_as_killed(start: Start, number: signal.Signals) -> None:
    process = start(*BASELINE, "--epochs", "1000")
    wait_for(process, "epoch 2/")
    process.send_signal(number)
    output = process.communicate()
    assert process.returncode == 128 + number
    assert "Traceback" not in output
    run = the_run()
    assert output.splitlines()[-2:] == [
        f"Interrupted; continue with python -m entrypoints.train --resume {run.info.run_id}",
        f"Stopped by {number.name}",
    ]
    assert run.info.status == "KILLED"
    assert run.data.tags["failure"] == "interrupted"
    assert checkpoint.load(run.info.run_id)["epochs"]


def wait_for_imports(launcher: subprocess.Popen[str]) -> None:
    """Wait until the entry point that `mlflow run` has started imports torch."""
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline:
        for child in psutil.Process(launcher.pid).children(recursive=True):
            with suppress(psutil.Error):
                if any("libtorch" in each.path for each in child.memory_maps()):
                    return
        time.sleep(0.01)
    raise AssertionError("no entry point was started")


@pytest.mark.parametrize("early", [pytest.param(False, marks=pytest.mark.slow), True])
def test_ctrl_c_at_mlflow_run_ends_the_run_as_killed(
    store: Path, dataset: Dataset, early: bool
) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "train"),
            *("--env-manager", "local", "-P", "model=baseline", "-P", "epochs=1000"),
        ],
        # MLflow's command refuses the experiment's id beside its name.
        env={name: os.environ[name] for name in os.environ if name != "MLFLOW_EXPERIMENT_ID"},
        cwd=store,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if early:
        wait_for_imports(process)
    else:
        wait_for(process, "epoch 2/")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=HANG_SECONDS)
    # `mlflow run` has said FAILED; our last word takes a moment.
    deadline = time.monotonic() + HANG_SECONDS
    while the_run().info.status != "KILLED" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert the_run().info.status == "KILLED"
    assert the_run().data.tags["failure"] == "interrupted"


def test_an_exception_ends_the_run_as_failed_with_its_reason(
    train_small: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fashion.training.loop.train", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train_small()
    assert the_run().info.status == "FAILED"
    assert the_run().data.tags["failure"] == "division by zero"


def test_runs_of_living_processes_are_not_closed(start: Start, command: Callable) -> None:
    process = start(*BASELINE, "--epochs", "1000")
    wait_for(process, "epoch 1/")
    assert command("close").stdout == ""
    assert the_run().info.status == "RUNNING"
    process.kill()
    run_id = the_run().info.run_id
    assert command("close").stdout.startswith(f"{run_id}: closed")
    assert the_run().info.status == "KILLED"
    assert command("close").stdout == ""


def test_parents_of_dead_processes_are_closed_too(start: Start, command: Callable) -> None:
    process = start(*BASELINE, "--epochs", "1000", "--seeds", "2")
    wait_for(process, "epoch 1/")
    process.kill()
    assert len(command("close").stdout.splitlines()) == 2
    found = mlflow.search_runs(output_format="list")
    assert [run.info.status for run in found] == ["KILLED", "KILLED"]


@pytest.fixture
def server(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with an empty store, which this process talks to as well."""
    server = Server(store)
    server.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    mlflow.set_tracking_uri(server.uri)
    yield server
    server.stop()


def test_a_server_that_is_down_is_said_before_training(start: Start, store: Path) -> None:
    uri = Server(store).uri
    output = start(*BASELINE, env={**os.environ, "MLFLOW_TRACKING_URI": uri}).communicate()
    assert output.startswith(f"Error: the tracking store {uri} cannot be used")
    assert len(output.splitlines()) == 1


def test_training_outlives_a_server_that_comes_back(start: Start, server: Server) -> None:
    process = start(*BASELINE, "--epochs", "60", "--batch-size", "64")
    wait_for(process, "epoch 2/")
    server.stop()
    wait_for(process, "training continues")
    server.start()
    output = process.communicate()
    assert process.returncode == 0, output
    assert_complete(the_run(), epochs=60)


def test_results_of_a_server_lost_for_good_are_replayed(
    start: Start, command: Callable, server: Server
) -> None:
    process = start(
        *BASELINE, "--epochs", "6", env={**os.environ, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    )
    wait_for(process, "epoch 1/")
    server.stop()
    output = process.communicate()
    assert process.returncode == 1
    assert "\ntest " in output
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith(f"Error: the tracking store {server.uri} cannot be")
    assert output.splitlines()[-1].endswith("log it with python -m entrypoints.replay")

    away = command("replay")
    assert away.returncode == 1
    assert away.stderr.startswith("Error: the tracking store")

    server.start()
    assert the_run().info.status == "RUNNING"
    done = command("replay")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{the_run().info.run_id}: logged"
    assert_complete(the_run(), epochs=6)
    assert command("replay").stdout == ""


def test_a_store_of_a_newer_schema_is_refused_in_one_line(
    start: Start, store: Path, dataset: Dataset
) -> None:
    import sqlite3

    with sqlite3.connect(store / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    database.close()
    process = start(*BASELINE)
    output = process.communicate()
    assert process.returncode == 1
    errors = [line for line in output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "Traceback" not in output
    assert "cannot be used" in errors[0]


def test_a_full_disk_is_said_in_one_line(start: Start, store: Path) -> None:
    disk = store / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        process = start(
            *BASELINE,
            "--epochs",
            "1000",
            env={**os.environ, "FASHION_STATE_DIR": str(disk / "state")},
        )
        wait_for(process, "epoch 1/")
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
        output = process.communicate()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    assert process.returncode == 1
    assert output.splitlines()[-1].startswith("Error: cannot write ")
    assert output.splitlines()[-1].endswith("No space left on device")
    assert "Traceback" not in output
    assert the_run().info.status == "FAILED"
    assert the_run().data.tags["failure"].startswith("cannot write ")


@pytest.mark.parametrize("again", [[], [signal.SIGINT, signal.SIGTERM]])
def test_a_database_that_never_answers_does_not_hold_a_stopped_process(
    start: Start, again: list[signal.Signals]
) -> None:
    """The second signal ends it, or ten seconds do."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"postgresql+psycopg://me@127.0.0.1:{silent.getsockname()[1]}/runs"
        process = start(*BASELINE, env={**os.environ, "MLFLOW_TRACKING_URI": uri})
        connection, _ = silent.accept()
        with connection:
            process.send_signal(signal.SIGINT)
            for number in again:
                process.wait(timeout=1.5)  # else it is the terminal's and mlflow run's one Ctrl-C
                process.send_signal(number)
            output = process.communicate()
    assert process.returncode == 128 + signal.SIGINT
    assert output.splitlines()[-1] == "Stopped by SIGINT"
    assert "Traceback" not in output


def test_no_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://me:secret@127.0.0.1:1/path")
    with pytest.raises(TrackingError) as raised, refusals("do"):
        raise OSError("no route to http://me:secret@127.0.0.1:1/path")
    assert "secret" not in str(raised.value)
    assert "127.0.0.1:1/path" in str(raised.value)


# A process of its own: what it must not break are its own locks.
STOPPED_MANY_TIMES = """
import importlib, os, random, signal, sys, threading, time
import click, mlflow
from click.testing import CliRunner
from entrypoints.cli.command import Command
from fashion.tracking import runs, store

store.connect()

@click.command(cls=Command)
def log():
    with runs.running():
        threading.Timer(moment, os.kill, (os.getpid(), signal.SIGTERM)).start()
        while time.monotonic() < end:
            mlflow.set_tag("key", "value")

times = int(sys.argv[1])
draw = random.Random(times)
for _ in range(times):
    moment, end = draw.uniform(0.001, 0.03), time.monotonic() + 600
    assert CliRunner().invoke(log).exit_code == 128 + signal.SIGTERM

thread = threading.Thread(target=importlib.import_module, args=["this"], daemon=True)
thread.start()
thread.join(600)
assert not thread.is_alive(), "no thread can import any more"
"""


@pytest.mark.parametrize("times", [30, pytest.param(100, marks=pytest.mark.slow)])
def test_a_run_stopped_at_any_moment_of_logging_ends_killed(store: Path, times: int) -> None:
    """Neither its own transaction, cut off, keeps it from the database, nor its own import."""
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_MANY_TIMES, str(times)],
        cwd=store,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    stopped = mlflow.search_runs(output_format="list")
    assert [run.info.status for run in stopped] == ["KILLED"] * times
