"""A sweep accounts for every trial, whatever dies meanwhile."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import ray
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.cluster_utils import Cluster
from rich.console import Console

from entrypoints import sweep as entry_point
from fashion.data.dataset import Dataset
from fashion.settings.experiment import Architecture, Experiment, Recipe
from fashion.sweeps import plan, progress, report, sweep, tuner
from fashion.sweeps.plan import Plan
from fashion.sweeps.trials import SweepError, TrialResult
from fashion.tracking import checkpoint
from fashion.training.build import build
from tests.conftest import HANG_SECONDS, ROOT, assert_one_line
from tests.processes import Process

SPACE = """
model: baseline
epochs: 4
batch_size: [64, 128]
lr: {loguniform: [0.001, 0.3]}
"""
TRIALS = 4


@pytest.fixture
def space_file(store: Path) -> Path:
    path = store / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture
def start_sweep(start: Callable[..., Process], space_file: Path) -> Callable[..., Process]:
    """Return a function that starts a sweep in a process of its own."""
    # The command must find out itself that Ray is not to start workers by uv.
    environment = {name: os.environ[name] for name in os.environ if "UV_RUN" not in name}
    # Ray's workers give way to everything else: beside other work they would hardly start.
    environment["RAY_worker_niceness"] = "0"

    def start_sweep(*arguments: str, **env: str) -> Process:
        return start("sweep", *arguments, env=environment | env)

    return start_sweep


def sweep_and_trials() -> tuple[Run, list[Run]]:
    found = mlflow.search_runs(output_format="list")
    (parent,) = (run for run in found if run.info.run_name == "sweep")
    trials = [run for run in found if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(found) == 1 + len(trials)
    return parent, trials


def assert_all_accounted_for(count: int, epochs: int) -> tuple[Run, list[Run]]:
    parent, trials = sweep_and_trials()
    assert parent.info.status == "FINISHED"
    assert len(trials) == count
    assert parent.data.metrics["trials_failed"] == 0
    for trial in trials:
        assert trial.info.status == "FINISHED"
        history = MlflowClient().get_metric_history(trial.info.run_id, "val_accuracy")
        steps = [point.step for point in history]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) == epochs or trial.data.tags["stopped_early"] == "true"
        # Selection is on validation data; test images stay out of it.
        assert not any("test" in name for name in trial.data.metrics)
    assert checkpoint.unfinished() == []
    return parent, trials


def assert_described(parent: Run, trials: list[Run], output: str) -> None:
    """Check the table, the figures and the command of the best trial, and what was printed."""
    assert any(trial.data.tags["stopped_early"] == "false" for trial in trials)
    table = pd.read_csv(artifact(parent, "trials.csv"))
    assert set(table["run_id"]) == {trial.info.run_id for trial in trials}
    whole = [trial for trial in trials if trial.data.tags["stopped_early"] == "false"]
    best = max(whole, key=lambda trial: trial.data.metrics["val_accuracy"])
    assert parent.data.tags["best_trial"] == best.data.tags["trial"] == table["trial"][0]
    assert f"Best: trial {best.data.tags['trial']}, " in output
    assert parent.data.metrics["val_accuracy"] == best.data.metrics["val_accuracy"]
    assert artifact(parent, "space.yaml").read_text() == SPACE
    for name in ("parallel_coordinates.png", "importances.png"):
        assert artifact(parent, name).stat().st_size > 5_000

    command = artifact(parent, "best.txt").read_text()
    assert command in output
    words = shlex.split(command)
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    asked = Experiment.from_options(settings)
    assert asked.recipe.lr == float(best.data.params["lr"])
    assert asked.recipe.batch_size == int(best.data.params["batch_size"])


def artifact(run: Run, name: str) -> Path:
    return Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=name))


@pytest.mark.parametrize(
    ("search", "number"),
    [
        ("optuna", signal.SIGTERM),
        pytest.param("random", signal.SIGKILL, marks=pytest.mark.slow(seconds=70)),
    ],
)
def test_a_sweep_goes_on_after_its_process_was_killed(
    start_sweep: Callable[..., Process],
    command: Callable[..., Any],
    search: str,
    number: signal.Signals,
) -> None:
    process = start_sweep("--space", "space.yaml", "--trials", str(TRIALS), "--search", search)
    for line in process.stdout:
        if line.startswith("trial "):
            break
    process.send_signal(number)
    output = process.communicate()
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number), output
    assert "Traceback" not in output
    if number == signal.SIGKILL:
        assert command("close").returncode == 0
    stopped, before = sweep_and_trials()
    assert stopped.info.status == "KILLED"
    assert {trial.info.status for trial in before} <= {"FINISHED", "KILLED"}

    output = start_sweep("--resume", "latest").communicate()
    parent, trials = assert_all_accounted_for(TRIALS, epochs=4)
    assert_described(parent, trials, output)
    assert re.search("^trial .*: finished", output, re.MULTILINE)
    assert parent.info.run_id == stopped.info.run_id, output
    assert {run.info.run_id for run in before} <= {run.info.run_id for run in trials}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Two nodes of one core each, every one with a raylet of its own."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.mark.slow(seconds=110)
def test_no_trial_of_a_grid_is_lost_with_a_node(
    start_sweep: Callable[..., Process], space_file: Path, cluster: Cluster
) -> None:
    space_file.write_text("{model: baseline, epochs: 12, lr: [0.01, 0.1], batch_size: [64, 128]}")
    process = start_sweep(
        *("--space", "space.yaml", "--search", "grid", "--grace-epochs", "0"),
        *("--storage", "trials"),
        RAY_ADDRESS=cluster.address,
    )
    (node,) = cluster.worker_nodes
    deadline = time.monotonic() + HANG_SECONDS
    while not (on_it := trials_on(node.node_id)) and time.monotonic() < deadline:
        time.sleep(0.2)
    cluster.remove_node(node, allow_graceful=False)
    output = process.communicate()
    assert process.returncode == 0, output
    _, trials = assert_all_accounted_for(4, epochs=12)
    tried = {(trial.data.params["lr"], trial.data.params["batch_size"]) for trial in trials}
    assert tried == {("0.01", "64"), ("0.01", "128"), ("0.1", "64"), ("0.1", "128")}
    assert on_it <= {trial.info.run_id for trial in trials}
    assert {trial.data.tags["node"] for trial in trials} == {cluster.head_node.node_id}


def trials_on(node: str) -> set[str]:
    found = mlflow.search_runs(filter_string=f"tags.node = '{node}'", output_format="list")
    return {run.info.run_id for run in found if run.info.status == "RUNNING"}


@pytest.mark.slow(seconds=70)
def test_failed_trials_are_tried_again_and_then_accounted_for(
    store: Path, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASHION_STATE_DIR", "state")  # workers run in other folders
    failures = {0.1: 2, 0.2: 1}

    def resolve(config: Mapping[str, Any]) -> Experiment:
        lr = config["lr"]
        attempt = len(list(store.glob(f"{lr}-*"))) + 1
        (store / f"{lr}-{attempt}").touch()
        if attempt <= failures[lr]:
            raise OSError("no luck")
        return Experiment(
            "baseline",
            architecture=Architecture(),
            val_size=200,
            device="cpu",
            recipe=Recipe(epochs=1, lr=lr),
        )

    searched = plan.parse("{lr: [0.1, 0.2]}", "here")
    grid = Plan(epochs=1, search="grid", grace_epochs=0, retries=1)
    sweep.run("", {}, searched, grid, small, 200, resolve=resolve)
    parent, trials = sweep_and_trials()
    assert len(list(store.glob("0.?-*"))) == 4
    statuses = {trial.data.params.get("lr", "failed"): trial.info.status for trial in trials}
    assert statuses == {"failed": "FAILED", "0.2": "FINISHED"}
    (failed,) = (trial for trial in trials if trial.info.status == "FAILED")
    assert "no luck" in failed.data.tags["failure"]
    assert parent.data.metrics["trials_failed"] == 1


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(entry_point.sweep, arguments)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must map option names to values"),
        ("[1, 2]", "must map option names to values"),
        ("{lr: [", "line 1: not valid YAML"),
        ("lr: 0.1", "nothing to search"),
        ("lr: {uniform: [0.1]}", "lr must be a value"),
        ("lr: {loguniform: [0, 1]}", "lr must be a value"),
        ("lr: {uniform: [2, 1]}", "lr must be a value"),
        ("lr: {uniform: [.nan, 1]}", "lr must be a value"),
        ("lr: []", "lr must be a value"),
        ("lr: {uniform: [false, true]}", "lr must be a value"),
        ("lr: {uniform: [1, %s]}" % (10**400), "lr must be a value"),
        ("lr: {loguniform: [low, 1e-1]}", "lr must be a value"),
        ("lr: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("{learning_rate: [0.1, 0.2]}", "unknown option"),
        ("lr: [0.1, -1]", "lr"),
        ("model: [cnn, gnn]", "gnn"),
        ("{optimizer: [sgd, adam], momentum: 0.9}", "momentum"),
        ("{lr: [0.1, 0.2], val_size: 0}", "val_size is 0"),
        ("val_size: [1000, 2000]", "val_size must be the same"),
        ("epochs: [1, 2]", "epochs must be the same"),
        ("{lr: [0.1, 0.2], patience: 2}", "patience is not an option"),
        ("{lr: [0.1, 0.2], seeds: 3}", "seeds is not an option"),
    ],
)
def test_a_bad_space_is_refused_in_one_line_before_a_run_is_opened(
    store: Path, space_file: Path, text: str, message: str
) -> None:
    space_file.write_text(text)
    result = invoke("--space", "space.yaml")
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)
    assert message in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert mlflow.search_runs(output_format="list") == []


def test_a_grid_has_no_ranges(space_file: Path) -> None:
    result = invoke("--space", "space.yaml", "--search", "grid")
    assert result.exit_code == 2
    assert "grid search needs lists" in result.stderr


def test_a_missing_space_is_one_line(store: Path) -> None:
    assert "nowhere.yaml" in assert_one_line(invoke("--space", "nowhere.yaml"))


def test_no_cluster_is_one_line_before_a_run_is_opened(
    space_file: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert "no Ray cluster" in assert_one_line(invoke("--space", "space.yaml"))
    assert mlflow.search_runs(output_format="list") == []


def test_without_ray_its_installation_is_named(
    space_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    error = assert_one_line(invoke("--space", "space.yaml"))
    assert error.startswith("Error: ray not installed: ")
    assert error.rstrip().endswith("uv sync --inexact --only-group sweep")


def test_there_is_no_sweep_to_go_on_with(store: Path) -> None:
    assert "no unfinished sweep" in assert_one_line(invoke("--resume", "latest"))


def test_a_resumed_sweep_keeps_its_plan(store: Path) -> None:
    result = invoke("--resume", "latest", "--trials", "7")
    assert result.exit_code == 2
    assert "resume takes trials from the sweep" in result.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_projects_own_spaces_can_be_trained(path: Path, small: Dataset) -> None:
    for corner in plan.read(path).corners():
        build(Experiment.from_options(corner), small.train)


def test_a_choice_of_which_one_value_was_tried_is_drawn_without_a_warning(
    recwarn: pytest.WarningsRecorder,
) -> None:
    searched = plan.parse("{lr: {loguniform: [0.01, 1]}, momentum: [0, 0.9]}", "here")
    results = [
        TrialResult(str(lr), "run", {"lr": lr, "momentum": 0}, 1, {"val_accuracy": lr}, None, False)
        for lr in (0.1, 0.2, 0.3)
    ]
    drawn = report.figures(results, searched)
    assert drawn.keys() == {"parallel_coordinates.png", "importances.png"}
    shown = [str(each.message) for each in recwarn if issubclass(each.category, UserWarning)]
    assert shown == []


def test_a_figure_says_which_trials_do_not_count() -> None:
    searched = plan.parse("{lr: {loguniform: [0.01, 1]}, batch_size: [32, 64]}", "here")
    results = [
        TrialResult(str(lr), "run", {"lr": lr, "batch_size": 64}, 1, metrics, failure, stopped)
        for lr, metrics, failure, stopped in [
            (0.1, {"val_accuracy": 0.8}, None, False),
            (0.2, {"val_accuracy": 0.7}, None, True),
            (0.3, {"val_accuracy": 0.9}, "out of memory", False),
        ]
    ]
    (axes, _) = report.figures(results, searched)["parallel_coordinates.png"].axes
    assert axes.get_title(loc="left").split("\n")[0] == (
        "3 trials, 1 stopped early (thin), 1 failed (dotted)"
    )
    trials = [
        line for line in axes.lines if len(line.get_xdata()) > 2 or line.get_linestyle() == ":"
    ]
    lengths = sorted(len(line.get_xdata()) for line in trials)
    assert lengths == [2, 3, 3]  # the failed one does not reach the accuracy


def test_the_table_fits_a_terminal_and_shows_the_best_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda: Console(file=screen, force_terminal=True, width=80)
    )
    searched = plan.parse(SPACE, "here")
    rows = [
        ("a_00000", "TERMINATED", 4, 0.81, {"lr": 0.0123456, "batch_size": 64}),
        ("a_00001", "TERMINATED", 1, 0.42, {"lr": 0.3, "batch_size": 64}),
        ("a_00002", "RUNNING", 2, 0.79, {"lr": 0.1, "batch_size": 128}),
        ("a_00003", "PENDING", 0, None, {"lr": 0.1, "batch_size": 128}),
        ("a_00004", "ERROR", 0, None, {"lr": 0.2, "batch_size": 64}),
    ]
    with progress.TrialTable(searched, plan.Plan(epochs=4)) as table:
        table.show(rows)
    shown = screen.getvalue()
    assert "0.0123 " in shown
    assert "2 running" not in shown
    for text in ("finished", "stopped early", "running", "pending", "failed", "81.00"):
        assert text in shown
    assert "3 of 5 trials have ended" in shown
    assert all(name in shown for name, *_ in rows)
    assert shown.index("00002") < shown.index("00000") < shown.index("00001")


def trial(name: str, epochs: int, accuracy: float, failure: str | None = None) -> TrialResult:
    metrics = {"val_accuracy": accuracy} if epochs else {}
    return TrialResult(name, "run", {"lr": 0.1}, epochs, metrics, failure, stopped=False)


def test_a_failed_trial_is_never_the_best() -> None:
    failed, short = trial("failed", 3, 0.9, "no memory left"), trial("short", 1, 0.8)
    good, better = trial("good", 2, 0.6), trial("better", 2, 0.7)
    results = [failed, short, good, better]
    assert report.best(results) == better
    order = report.table(results, plan.parse("lr: [0.1, 1]", "here"))["trial"]
    assert list(order) == ["better", "good", "short", "failed"]


def test_if_all_trials_failed_the_reasons_are_said() -> None:
    failed = [trial(name, 3, 0.9, "no memory left") for name in "ab"]
    with pytest.raises(SweepError, match=r"all trials failed: no memory left$"):
        report.best([*failed])


@pytest.mark.parametrize(("built_by_uv", "manager"), [(False, "local"), (True, "uv")])
def test_the_best_trials_command_can_be_pasted_into_a_shell(
    monkeypatch: pytest.MonkeyPatch, built_by_uv: bool, manager: str
) -> None:
    monkeypatch.delenv("CONDA_PREFIX", raising=False)
    environments = Path(sys.prefix).parent if built_by_uv else ROOT / "elsewhere"
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(environments))
    config = {"augment": "flip, shift", "pretrained": "it's $HOME;", "lr": 1e-5, "tta": True}
    script = f"mlflow() {{ printf '%s|' \"$@\"; }}; {report.command(config)}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"run|.|-e|train|--env-manager|{manager}|-P|augment=flip, shift|"
        "-P|pretrained=it's $HOME;|"
        "-P|lr=1e-05|-P|tta=true|"
    )


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    space = plan.parse(
        "{lr: {loguniform: [1e-3, '0.1']}, momentum: [0, 9e-1], ema-decay: 5e-1, mixup: oops}",
        "here",
    )
    assert space.dimensions == {
        "lr": plan.Range(0.001, 0.1, log=True),
        "momentum": [0, 0.9],
        "ema_decay": 0.5,
        "mixup": "oops",
    }


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray as it would be with one node of two cores and no GPU."""
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 2.0}}])


@pytest.mark.parametrize("options", [("--cpus-per-trial", "3"), ("--gpus-per-trial", "0.5")])
def test_more_than_the_machine_has_is_one_line_before_a_run_is_opened(
    space_file: Path, two_cores: None, options: tuple[str, ...]
) -> None:
    message = assert_one_line(invoke("--space", "space.yaml", *options))
    assert "this machine has 2 and 0: lower cpus_per_trial" in message
    assert mlflow.search_runs(output_format="list") == []


def test_a_cluster_that_has_too_little_may_grow(
    two_cores: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    for cpus, warnings in ((2, 0), (3, 1)):
        with tuner.cluster(Plan(epochs=1, cpus_per_trial=cpus)):
            assert len(caplog.messages) == warnings
    assert "a trial needs 3 CPU cores and 0 GPUs: the sweep waits until" in caplog.text


@pytest.mark.parametrize("folder", ["space.yaml", "long" * 25])
def test_a_folder_in_which_ray_cannot_start_is_one_line(
    space_file: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(space_file.parent / folder))
    message = assert_one_line(invoke("--space", "space.yaml"))
    assert "set RAY_TMPDIR to a folder with a short path" in message
    assert "RAY_ADDRESS" not in message
    assert mlflow.search_runs(output_format="list") == []
