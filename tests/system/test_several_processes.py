"""Several processes, and several machines, are one MLflow run that can be stopped and resumed."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from fashion.data.dataset import Dataset
from fashion.tracking import checkpoint
from tests.conftest import HANG_SECONDS, free_port
from tests.processes import Process


def assert_one_run_of_two(run: Run, epochs: int) -> None:
    assert run.info.status == "FINISHED"
    assert run.data.params["nproc"] == "2"
    assert run.data.params["kernels_used"] == "torch"
    history = MlflowClient().get_metric_history(run.info.run_id, "val_accuracy")
    assert [point.step for point in history] == list(range(1, epochs + 1))
    assert len(run.outputs.model_outputs) == 1
    assert checkpoint.unfinished() == []


@pytest.mark.slow(seconds=140)
def test_stopped_together_they_go_on_together_as_one_run_for_each_seed(
    start: Callable[..., Process], command: Callable[..., Any]
) -> None:
    settings = ("--model=baseline", "--epochs=5", "--batch-size=512", "--augment=flip")
    process = start("train", *settings, "--seeds=2", "--nproc=2")
    for line in process.stdout:
        if "epoch 1/" in line:
            break
    process.send_signal(signal.SIGTERM)
    output = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, output
    assert "Traceback" not in output
    stopped = mlflow.search_runs(output_format="list")
    assert {run.info.status for run in stopped} == {"KILLED"}

    alone = command("train", "--resume", "latest")
    assert alone.returncode == 1
    assert "nproc was 2, is 1" in alone.stderr
    done = command("train", "--resume", "latest", "--nproc", "2")
    assert done.returncode == 0, done.stderr
    found = mlflow.search_runs(order_by=["start_time ASC"], output_format="list")
    assert {run.info.run_id for run in stopped} <= {run.info.run_id for run in found}
    trained = [run for run in found if "seed" in run.data.params]
    assert [run.data.params["seed"] for run in trained] == ["42", "43"]
    for run in trained:
        assert_one_run_of_two(run, epochs=5)
        assert run.data.metrics["test_accuracy"] > 0.7
    assert len(found) == 3
    assert found[0].info.status == "FINISHED"
    assert done.stdout.count("epoch 5/5") == 2
    assert f"Logged as run {found[0].info.run_id}\n" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow(seconds=60)
def test_two_machines_are_one_run(dataset: Dataset, store: Path) -> None:
    """Each with a torchrun of its own, that meet at an address."""
    port = free_port()
    machines = [
        subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nnodes=2",
                    "--nproc-per-node=1",
                ),
                *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"),
                *("--local-addr=127.0.0.1", "-m", "entrypoints.train", "--model", "baseline"),
                *("--epochs", "1"),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=store,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(2)
    ]
    for machine in machines:
        output, _ = machine.communicate(timeout=HANG_SECONDS)
        assert machine.returncode == 0, output
    (run,) = mlflow.search_runs(output_format="list")
    assert_one_run_of_two(run, epochs=1)
