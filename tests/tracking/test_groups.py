"""Several runs under one parent are completed after an interruption, and so is their parent."""

import shlex
from collections.abc import Callable, Iterator
from typing import Any

import click
import mlflow
import pytest
from click.testing import Result
from mlflow.entities import Run

from entrypoints.close import close
from entrypoints.main import main
from entrypoints.train import train
from fashion.tracking import checkpoint
from fashion.training import loop
from tests.conftest import assert_one_line

SETTINGS = ("--epochs", "1", "--val-size", "200", "--batch-size", "100")
SEEDS = ("--model", "baseline", *SETTINGS, "--seeds", "3")


@pytest.fixture
def interrupted(invoke: Callable[..., Result]) -> Callable[..., list[str]]:
    """Return a function that interrupts a command in its second training.

    It returns the arguments of the command that is then printed.
    """

    def run(command: click.Command, *arguments: str) -> list[str]:
        original, calls = loop.train, iter(range(1, 100))

        def train(*given: Any) -> Iterator[loop.Epoch]:
            if next(calls) == 2:
                raise KeyboardInterrupt
            return original(*given)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train", train)
            output = invoke(command, arguments).stderr
        (line,) = (line for line in output.splitlines() if line.startswith("Interrupted"))
        start = f"Interrupted; continue with python -m entrypoints.{command.name} "
        assert line.startswith(start)
        return shlex.split(line.removeprefix(start))

    return run


def parent_and_children() -> tuple[Run, list[Run]]:
    found = mlflow.search_runs(output_format="list", order_by=["attributes.start_time ASC"])
    parent, *children = found
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    return parent, children


def test_interrupted_seeds_are_completed_by_the_printed_command(
    invoke: Callable[..., Result], interrupted: Callable[..., list[str]]
) -> None:
    arguments = interrupted(train, *SEEDS)
    before, (first, second) = parent_and_children()
    assert [run.info.status for run in (before, first, second)] == ["KILLED", "FINISHED", "KILLED"]
    assert arguments == ["--resume", before.info.run_id]

    result = invoke(train, arguments)
    assert result.exit_code == 0, result.output
    parent, children = parent_and_children()
    assert [run.data.params["seed"] for run in children] == ["42", "43", "44"]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert [run.info.run_id for run in children[:2]] == [first.info.run_id, second.info.run_id]
    assert children[0].info.end_time == first.info.end_time
    accuracies = [run.data.metrics["test_accuracy"] for run in children]
    mean = parent.data.metrics["test_accuracy_mean"]
    assert mean == pytest.approx(sum(accuracies) / 3)
    assert checkpoint.unfinished() == []


def test_an_interrupted_lab_is_compared_and_registered_when_it_is_resumed(
    invoke: Callable[..., Result], interrupted: Callable[..., list[str]]
) -> None:
    interrupted(main, *SETTINGS)
    refused = assert_one_line(invoke(train, ["--resume", "latest"]))
    assert "continue with python -m entrypoints.main --resume " in refused
    # With the settings of before, as the same command with one more option.
    result = invoke(main, [*SETTINGS, "--resume", "latest"])
    assert result.exit_code == 0, result.output
    parent, children = parent_and_children()
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert len(children) == 3
    assert "fashion-mnist-cnn version 1 registered" in result.stdout
    artifacts = mlflow.artifacts.list_artifacts(run_id=parent.info.run_id)
    assert "comparison.json" in {file.path for file in artifacts}


def test_a_seed_of_an_interrupted_group_is_resumed_with_the_rest(
    invoke: Callable[..., Result], interrupted: Callable[..., list[str]]
) -> None:
    interrupted(train, *SEEDS)
    _, (_, second) = parent_and_children()
    changed = [*SEEDS[:-1], "2", "--lr", "0.5", "--resume", second.info.run_id]
    message = assert_one_line(invoke(train, changed))
    assert "lr was 0.1, is 0.5; seeds was 3, is 2" in message
    result = invoke(train, ["--resume", second.info.run_id])
    assert result.exit_code == 0, result.output
    parent, children = parent_and_children()
    assert len(children) == 3
    assert parent.info.status == "FINISHED"


def test_close_advises_the_command_that_completes_all(
    invoke: Callable[..., Result], interrupted: Callable[..., list[str]]
) -> None:
    interrupted(train, *SEEDS)
    client = mlflow.MlflowClient()
    parent, (_, second) = parent_and_children()
    for run in (parent, second):  # as kill -9 leaves them
        client.update_run(run.info.run_id, status="RUNNING")
    lines = sorted(invoke(close, []).stdout.splitlines(), key=len)
    again = f"python -m entrypoints.train --resume {parent.info.run_id}"
    assert lines == [
        f"{second.info.run_id}: closed",
        f"{parent.info.run_id}: closed; continue with {again}",
    ]
