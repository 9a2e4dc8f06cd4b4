"""The commands refuse bad input in one line, before any run is created."""

import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import mlflow
import pytest
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from entrypoints.main import main
from entrypoints.train import train
from fashion.data import download
from fashion.data.dataset import Dataset
from fashion.models import catalogue
from fashion.settings.experiment import Experiment
from fashion.settings.gate import GATE_OPTIONS
from fashion.settings.presets import PRESETS
from tests.conftest import ROOT


def runs() -> list[mlflow.entities.Run]:
    return mlflow.search_runs(search_all_experiments=True, output_format="list")


@pytest.mark.parametrize("command", [train, main])
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "three"),
        ("--epochs", "1.5"),
        ("--batch-size", "0"),
        ("--lr", "-0.1"),
        ("--lr", "0"),
        ("--lr", "nan"),
        ("--lr", "inf"),
        ("--blocks", "5"),
        ("--dropout", "1"),
        ("--batch-norm", "perhaps"),
        ("--augment", "flip,spin"),
        ("--patience", "-1"),
        ("--optimizer", "lion"),
        ("--momentum", "1"),
        ("--momentum", "nan"),
        ("--nesterov", "perhaps"),
        ("--weight-decay", "-1"),
        ("--schedule", "zigzag"),
        ("--warmup-epochs", "-1"),
        ("--label-smoothing", "1"),
        ("--clip-norm", "inf"),
        ("--ema-decay", "1"),
        ("--mixup", "-1"),
        ("--precision", "float8"),
        ("--hidden-units", "0"),
        ("--seed", "-1"),
        ("--seed", "99999999999999999999"),
        ("--val-size", "60000"),
        ("--val-size", "5"),
        ("--val-size", "-1"),
        ("--device", "tpu"),
        ("--system-metrics", "perhaps"),
        ("--nonsense", "1"),
        ("--preset", "best"),
        ("--freeze-epochs", "-1"),
        ("--tta", "perhaps"),
        ("--seeds", "0"),
        ("--batch-size", "99999999999999999999"),
    ],
)
def test_a_bad_option_is_a_usage_error_that_names_it(invoke, command, option, value) -> None:
    result = invoke(command, [option, value])
    assert result.exit_code == 2
    assert option in result.stderr
    assert len(result.stderr.splitlines()[-1]) < 200
    assert "Traceback" not in result.output
    assert runs() == []


def test_a_preset_gives_the_defaults_and_an_option_overrides_it(
    invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"model": "baseline", "lr": 0.05, "batch_size": 50, "epochs": 2, "augment": "flip"}
    monkeypatch.setitem(PRESETS, "fast", settings)
    # In any order, and with the names as MLflow hands them on.
    for order in (1, -1):
        words = [["--preset", "fast"], ["--batch_size", "100"], ["--val-size", "200"]][::order]
        result = invoke(train, [word for pair in words for word in pair])
        assert result.exit_code == 0, result.output
        params = runs()[0].data.params
        expected = {**settings, "batch_size": 100, "preset": "fast"}
        assert {name: params[name] for name in expected} == {
            name: str(value) for name, value in expected.items()
        }


def test_main_takes_what_train_and_the_gate_take() -> None:
    names = [{parameter.name for parameter in each.params} for each in (train, main)]
    assert names[0] | GATE_OPTIONS.keys() == names[1]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_can_be_built(preset: str) -> None:
    asked = Experiment.from_options({"preset": preset})
    assert catalogue.build(asked.model, asked.recipe.seed, asked.architecture)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("model", [*catalogue.MODELS, "torchvision:resnet18"])
def test_a_preset_trains_another_network_with_its_recipe(preset: str, model: str) -> None:
    usual = Experiment.from_options({"preset": preset})
    asked = Experiment.from_options({"preset": preset, "model": model})
    assert catalogue.options_of(model, asked.architecture)
    assert (asked.recipe, asked.tta) == (usual.recipe, usual.tta)
    assert asked.architecture == (
        usual.architecture if model == usual.model else Experiment(model).architecture
    )
    wider = Experiment.from_options({"preset": preset, "model": model, "hidden_units": 7})
    assert wider.architecture.hidden_units == 7


def test_test_time_augmentation_is_logged_beside_the_plain_accuracy(invoke) -> None:
    result = invoke(
        train, ["--model", "baseline", "--epochs", "1", "--val-size", "200", "--tta", "true"]
    )
    assert result.exit_code == 0, result.output
    (run,) = runs()
    for split in ("val", "test"):
        plain, augmented = (
            run.data.metrics[f"{split}_{metric}"] for metric in ("loss", "loss_tta")
        )
        assert plain != augmented
        assert 0 < run.data.metrics[f"{split}_accuracy_tta"] < 1
    accuracy = f"{run.data.metrics['test_accuracy_tta']:.2%}"
    (line,) = (line for line in result.stdout.splitlines() if "averaged with mirror images" in line)
    assert line.split()[:3] == ["test", f"{run.data.metrics['test_loss_tta']:.4f}", accuracy]
    note = run.data.tags["mlflow.note.content"].splitlines()
    (row,) = (row for row in note if row.startswith("| test, averaged with mirror images"))
    assert accuracy in row


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--model", "unheard-of"], "baseline, nonlinear, nonlinear-fixed, cnn"),
        (["--model", "resnet18"], "did you mean torchvision:resnet18?"),
        (["--model", "resnet9"], "did you mean resnet?"),
        (["--learning-rate", "1"], "Did you mean '--lr'?"),
        (["--batchsize", "1"], "'--batch-size'"),
    ],
)
def test_a_usage_error_says_what_was_meant(invoke, arguments: list[str], advice: str) -> None:
    result = invoke(train, arguments)
    assert result.exit_code == 2
    assert advice in result.stderr
    assert runs() == []


def test_an_unwritable_data_directory_is_one_line(
    store: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "DEBIAN_DIR", dataset.directory)
    result = CliRunner().invoke(train, ["--data-dir", "/proc"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: cannot")
    assert "/proc" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert runs() == []


def test_an_unreachable_server_is_one_line(invoke) -> None:
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    result = invoke(train, ["--model", "baseline", "--epochs", "1"])
    assert result.exit_code == 1
    assert "Error: the tracking store http://127.0.0.1:9 cannot be used" in result.stderr
    assert "Traceback" not in result.output


def test_train_reports_its_epochs_and_its_run(invoke) -> None:
    result = invoke(train, ["--model", "baseline", "--epochs", "2", "--val-size", "200"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "Training baseline, 7,960 parameters"
    assert lines[1] == "  2 epochs of sgd, lr 0.1, batch 32, seed 42"
    conditions = r"  1,800 images, 200 held out; cpu, \d+ threads?, \w+ kernels"
    assert re.fullmatch(conditions, lines[2])
    assert lines[3].startswith("epoch 1/2  train ")
    assert lines[4].startswith("epoch 2/2  train ")
    assert lines[5].startswith("test ")
    assert max(map(len, lines[:6])) <= 80
    (run,) = runs()
    assert f"Logged as run {run.info.run_id}" in lines


@pytest.mark.parametrize("command", [train, main])
def test_options_that_contradict_each_other_are_refused(invoke, command: click.Command) -> None:
    result = invoke(command, ["--optimizer", "adam", "--momentum", "0.9"])
    assert result.exit_code == 2
    assert "Error: momentum" in result.stderr
    assert runs() == []


def test_early_stopping_needs_validation_data(invoke) -> None:
    result = invoke(train, ["--patience", "1", "--val-size", "0"])
    assert result.exit_code == 2
    assert "Error: patience needs validation data" in result.stderr
    assert runs() == []


def test_an_option_that_the_model_lacks_is_refused(invoke) -> None:
    result = invoke(train, ["--model", "baseline", "--blocks", "3"])
    assert result.exit_code == 2
    assert "Error: baseline has no option blocks" in result.stderr
    assert runs() == []


def test_seeds_become_children_and_their_spread_is_the_parents(invoke) -> None:
    arguments = ["--model", "baseline", "--epochs", "1", "--val-size", "200"]
    result = invoke(train, [*arguments, "--seeds", "3", "--seed", "7"])
    assert result.exit_code == 0, result.output
    children = [run for run in runs() if "model" in run.data.tags]
    (parent,) = (run for run in runs() if "model" not in run.data.tags)
    assert sorted(run.data.params["seed"] for run in children) == ["7", "8", "9"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    for metric in ("val_accuracy", "test_accuracy", "test_loss", "train_seconds"):
        values = [run.data.metrics[metric] for run in children]
        assert parent.data.metrics[f"{metric}_mean"] == pytest.approx(statistics.mean(values))
        assert parent.data.metrics[f"{metric}_std"] == pytest.approx(statistics.stdev(values))
    mean = parent.data.metrics["test_accuracy_mean"]
    assert f"test_accuracy: {mean:.2%} ± " in result.stdout
    assert f"Logged as run {parent.info.run_id}\n" in result.stdout
    assert f"{mean:.4f} ± " in parent.data.tags["mlflow.note.content"]


def test_main_trains_compares_and_registers(invoke) -> None:
    result = invoke(main, ["--epochs", "1", "--val-size", "200"])
    assert result.exit_code == 0, result.output
    parents = [run for run in runs() if "model" not in run.data.tags]
    children = [run for run in runs() if "model" in run.data.tags]
    (parent,) = parents
    assert {run.data.tags["model"] for run in children} == {"baseline", "nonlinear", "cnn"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.info.status for run in runs()} == {"FINISHED"}
    names = {file.path for file in mlflow.artifacts.list_artifacts(run_id=parent.info.run_id)}
    assert names >= {"comparison.json", "comparison.png"}
    best = max(children, key=lambda run: run.data.metrics["val_accuracy"])
    for metric in ("val_accuracy", "test_accuracy"):
        assert parent.data.metrics[metric] == best.data.metrics[metric]
    assert len(parent.inputs.dataset_inputs) == 3
    for run in children:
        link = f"#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        assert link in parent.data.tags["mlflow.note.content"]
    (cnn,) = (run.info.run_id for run in children if run.data.tags["model"] == "cnn")
    assert f"fashion-mnist-cnn version 1 registered, from run {cnn}" in result.stdout
    champion = mlflow.MlflowClient().get_model_version_by_alias("fashion-mnist-cnn", "champion")
    assert champion.run_id == cnn

    again = invoke(main, ["--epochs", "1", "--val-size", "200"])
    assert again.exit_code == 0, again.output
    assert "version 1 already registered" in again.stdout


def test_main_registers_nothing_that_was_not_validated(invoke) -> None:
    result = invoke(main, ["--epochs", "1", "--val-size", "0"])
    assert result.exit_code == 0, result.output
    assert "Nothing registered" in result.stdout
    assert mlflow.MlflowClient().search_registered_models() == []


def test_main_finishes_where_the_registry_refuses(invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(mlflow.MlflowClient, "create_registered_model", refuse)
    result = invoke(main, ["--model", "baseline", "--epochs", "1", "--val-size", "200"])
    assert result.exit_code == 0, result.output
    assert "Nothing registered: the model registry cannot be used (" in result.stdout
    assert {run.info.status for run in runs()} == {"FINISHED"}


@pytest.mark.parametrize("module", ["main", "train", "compare", "register"])
def test_help_loads_neither_torch_nor_mlflow(module: str) -> None:
    code = (
        f"import sys; from entrypoints.{module} import {module} as command\n"
        "try: command(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'mlflow', 'torchvision', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_command_by_itself_logs_its_commit_and_keeps_progress_bars_out_of_files(
    command: Callable,
) -> None:
    done = command("train", "--model", "baseline", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "it/s" not in done.stderr
    assert "epoch 1/1" in done.stdout
    (run,) = runs()
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40
