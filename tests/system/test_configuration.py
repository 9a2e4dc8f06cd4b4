"""The settings of a run can be written to a file, and read back from a run."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner, Result

from entrypoints.__main__ import commands
from entrypoints.cli.mlproject import ENTRY_POINTS
from entrypoints.compare import compare
from entrypoints.main import main
from entrypoints.train import train
from fashion.settings.experiment import OPTIONS, Experiment
from fashion.tracking import launcher, views
from tests.conftest import assert_one_line

Invoke = Callable[..., Result]


def newest() -> mlflow.entities.Run:
    return mlflow.search_runs(output_format="list", order_by=["start_time DESC"])[0]


def test_a_run_repeats_the_settings_of_another_run(
    invoke: Invoke, train_small: Callable[..., str]
) -> None:
    first = mlflow.get_run(train_small(lr=0.05, momentum=0.5, augment=("flip",), seed=7))
    result = invoke(train, ["--config", f"runs:/{first.info.run_id[:8]}"])
    assert result.exit_code == 0, result.output
    second = newest()
    assert second.info.run_id != first.info.run_id
    assert second.data.params == first.data.params
    assert second.data.metrics["test_loss"] == first.data.metrics["test_loss"]


def test_a_run_from_before_an_option_is_repeated_without_it(
    invoke: Invoke, train_small: Callable[..., str]
) -> None:
    client = mlflow.MlflowClient()
    older = train_small()
    settings = "preset: fast\nmodel: compact\nhidden_units: 2\nepochs: 1\nval_size: 200\n"
    client.log_text(older, settings, "settings.yaml")
    result = invoke(train, ["--config", f"runs:/{older}"])
    assert result.exit_code == 0, result.output
    params = newest().data.params
    assert params.items() >= {"preset": "fast", "hidden_units": "2", "whiten": "False"}.items()


def test_options_override_a_file_and_its_preset(invoke: Invoke, store: Path) -> None:
    (store / "run.yaml").write_text("preset: fast\nmodel: baseline\nepochs: 2\nval-size: 200\n")
    result = invoke(train, ["--config", "run.yaml", "--hidden-units", "10", "--epochs", "1"])
    assert result.exit_code == 0, result.output
    params = newest().data.params
    expected = {"model": "baseline", "epochs": "1", "val_size": "200", "optimizer": "muon"}
    assert params.items() >= expected.items()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("epochs: [", [], "run.yaml, line 1: not valid YAML"),
        ("epochs", [], "run.yaml: must map option names to values"),
        ("epochs: 0", [], "run.yaml: epochs: 0 is not in the range"),
        ("learning_rate: 1", [], "run.yaml: learning_rate: unknown option; did you mean lr?"),
        ("epochs: 1", ["--preset", "fast"], "omit --preset"),
        ("epochs: 1", ["--momentum", "0.5", "--optimizer", "adam"], "momentum"),
        ("epochs: 1", ["--resume", "latest"], "omit --config"),
    ],
)
@pytest.mark.parametrize("command", [train, main])
def test_a_bad_configuration_is_refused_before_there_is_a_run(
    invoke: Invoke, store: Path, command: object, content: str, arguments: list[str], message: str
) -> None:
    (store / "run.yaml").write_text(content)
    result = invoke(command, ["--config", "run.yaml", *arguments])
    assert result.exit_code in (1, 2)
    assert message in result.stderr.splitlines()[-1]
    assert not mlflow.search_runs(output_format="list")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("missing.yaml", "cannot read missing.yaml: No such file"),
        ("runs:/0123456789", "is no run of this tracking store"),
        ("runs:/x", "is not the id of a run"),
    ],
)
def test_settings_that_are_nowhere_are_one_line(invoke: Invoke, config: str, message: str) -> None:
    assert message in assert_one_line(invoke(train, ["--config", config]))


def test_a_run_that_trained_nothing_has_no_settings(invoke: Invoke) -> None:
    with mlflow.start_run(run_name="idle") as run:
        pass
    error = assert_one_line(invoke(train, ["--config", f"runs:/{run.info.run_id}"]))
    assert "(idle) has logged no settings.yaml: name a training run" in error


def test_a_run_has_the_name_and_tags_that_were_asked_for_and_so_have_its_children(
    invoke: Invoke,
) -> None:
    arguments = ["--model", "baseline", "--epochs", "1", "--val-size", "200", "--seeds", "2"]
    arguments += ["--run-name", "try 7", "--tag", "team=vision", "--tag", "why=a = b"]
    result = invoke(train, arguments)
    assert result.exit_code == 0, result.output
    runs = mlflow.search_runs(output_format="list")
    assert sorted(run.info.run_name for run in runs) == ["baseline", "baseline", "try 7"]
    assert all(run.data.tags.items() >= {"team": "vision", "why": "a = b"}.items() for run in runs)


@pytest.mark.parametrize("tag", ["team", "=x", "model=cnn", "mlflow.user=me", "torch_version=1"])
def test_a_tag_with_a_meaning_of_its_own_is_refused(invoke: Invoke, tag: str) -> None:
    assert invoke(train, ["--tag", tag]).exit_code == 2


@pytest.mark.parametrize(
    ("options", "title"),
    [
        ({}, "cnn"),
        ({"model": "baseline", "lr": 0.05, "seed": 43}, "baseline lr=0.05 seed=43"),
        ({"preset": "fast"}, "compact preset=fast"),
        ({"preset": "fast", "optimizer": "sgd"}, "compact preset=fast optimizer=sgd"),
    ],
)
def test_a_model_is_called_after_what_is_special_about_it(
    options: dict[str, object], title: str
) -> None:
    assert Experiment.from_options(options).title == title


def test_every_setting_can_come_from_a_file(invoke: Invoke) -> None:
    help_text = invoke(train, ["--help"]).output
    assert all(f"--{name.replace('_', '-')}" in help_text for name in OPTIONS)


def test_the_run_that_mlflow_made_for_a_command_says_what_it_found(
    invoke: Invoke, train_small: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_small()
    run = mlflow.MlflowClient().create_run("1", run_name="bold-shrew-123")
    monkeypatch.setenv(launcher.VARIABLE, run.info.run_id)
    assert invoke(compare, []).exit_code == 0
    described = mlflow.get_run(run.info.run_id)
    assert described.info.run_name == "compare"
    assert trained[:8] in described.data.tags["mlflow.note.content"]


def test_what_was_trained_stays_valid_if_the_store_does_not_answer_any_more(
    train_small: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = train_small()
    mlflow.set_tracking_uri("http://127.0.0.1:9")
    assert "does not answer now" in views.advice(run_id)


def test_all_commands_are_listed_and_run() -> None:
    listed = CliRunner().invoke(commands, ["--help"]).output
    assert all(f"\n  {name} " in listed for name in ENTRY_POINTS)
    assert CliRunner().invoke(commands, ["compare", "--help"]).exit_code == 0
    assert CliRunner().invoke(commands, ["trian"]).exit_code == 2
