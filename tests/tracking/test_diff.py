"""`diff` compares two models by the predictions that their runs have kept."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import mlflow
import pandas as pd
import pytest
from click.testing import Result
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run

from entrypoints.diff import diff
from fashion.analysis import predictions
from fashion.settings.task import MODEL_NAME
from fashion.tracking import models
from tests.conftest import assert_one_line


@pytest.fixture
def compare(invoke: Callable[..., Result]) -> Callable[..., Result]:
    return lambda a, b: invoke(diff, ["--a", a, "--b", b])


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Count how often a model is loaded."""
    monkeypatch.setattr(models, "load", Mock(wraps=models.load))
    return models.load


def logged() -> Run:
    """Return the run that the comparison was logged to."""
    (run,) = mlflow.search_runs(filter_string="run_name LIKE 'diff: %'", output_format="list")
    return mlflow.get_run(run.info.run_id)


def uri(run_id: str) -> str:
    return models.model_uri(mlflow.get_run(run_id))


def kept(run_id: str) -> Path:
    """Return the file of predictions of a run."""
    return Path(mlflow.get_run(run_id).info.artifact_uri, predictions.FILE)


def move_to_other_images(run_id: str, split: str) -> None:
    """Change the predictions that a run has kept to those on other images."""
    answers = predictions.read(kept(run_id))
    others = replace(answers[split], digest="of others")
    predictions.write(kept(run_id), answers | {split: others})


def accuracy(run_id: str, split: str) -> float:
    return mlflow.get_run(run_id).data.metrics[f"{split}_accuracy"]


def test_two_runs_are_compared_without_running_any_model(
    train_small: Callable[..., str], compare: Callable[..., Result], loaded: Mock
) -> None:
    a, b = train_small(), train_small("nonlinear")
    result = compare(a[:8], b)
    assert result.exit_code == 0, result.output
    assert "200 validation images" in result.stdout
    assert "500 test images" in result.stdout
    assert f"baseline ({a[:8]})" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    loaded.assert_not_called()

    run = logged()
    assert run.info.run_name == f"diff: baseline ({a[:8]}) / nonlinear ({b[:8]})"
    assert run.info.run_id in result.stderr
    for split in ("val", "test"):
        assert run.data.metrics[f"{split}_a_accuracy"] == pytest.approx(accuracy(a, split))
        assert run.data.metrics[f"{split}_b_accuracy"] == pytest.approx(accuracy(b, split))
    assert "model" not in run.data.tags  # it is no training run
    note = run.data.tags["mlflow.note.content"]
    assert f"(get-artifact?path=test_changed.png&run_uuid={run.info.run_id})" in note
    datasets = {each.tags[-1].value: each.dataset.digest for each in run.inputs.dataset_inputs}
    assert datasets.keys() == {"validation", "test"}
    linked = [f"models:/{each.model_id}" for each in run.inputs.model_inputs]
    assert sorted(linked) == sorted([uri(a), uri(b)])
    table = pd.read_csv(
        mlflow.artifacts.download_artifacts(
            run_id=run.info.run_id, artifact_path="test_changed.csv"
        )
    )
    differing = run.data.metrics["test_only_a_right"] + run.data.metrics["test_only_b_right"]
    assert len(table) == differing > 0


def test_an_alias_and_a_path_in_a_run_name_the_run_that_logged_the_model(
    train_small: Callable[..., str], compare: Callable[..., Result], loaded: Mock
) -> None:
    run_id = train_small()
    mlflow.register_model(uri(run_id), MODEL_NAME)
    MlflowClient().set_registered_model_alias(MODEL_NAME, "champion", "1")
    title = mlflow.get_logged_model(uri(run_id).removeprefix("models:/")).name
    result = compare(f"models:/{MODEL_NAME}@champion", f"runs:/{run_id}/{title}")
    assert result.exit_code == 0, result.output
    assert f"a  {MODEL_NAME} version 1 (champion)" in result.stdout
    assert f"b  baseline ({run_id[:8]})" in result.stdout
    assert result.stdout.count("Both models classify the same images correctly.") == 2
    loaded.assert_not_called()
    assert len(logged().inputs.model_inputs) == 1

    kept(run_id).unlink()
    assert compare(f"models:/{MODEL_NAME}@champion", run_id).exit_code == 0
    loaded.assert_any_call(f"models:/{MODEL_NAME}/1")


def test_a_model_whose_predictions_are_lost_is_evaluated_once(
    train_small: Callable[..., str],
    compare: Callable[..., Result],
    loaded: Mock,
    subtests: pytest.Subtests,
) -> None:
    a, b = train_small(), train_small("nonlinear")
    content = kept(a).read_bytes()
    for damage in ("deleted", "truncated", "of other images"):
        with subtests.test(damage):
            kept(a).write_bytes(content)
            if damage == "deleted":
                kept(a).unlink()
            elif damage == "of other images":
                move_to_other_images(a, "validation")
            else:
                kept(a).write_bytes(content[:100])
            loaded.reset_mock()
            assert compare(a, b).exit_code == 0
            loaded.assert_called_once_with(uri(a))
            run = logged()
            assert run.data.metrics["val_a_accuracy"] == pytest.approx(accuracy(a, "val"))
            assert run.data.metrics["test_a_accuracy"] == pytest.approx(accuracy(a, "test"))
            MlflowClient().delete_run(run.info.run_id)


def test_a_model_in_a_folder_is_compared_on_test_images_only(
    train_small: Callable[..., str], compare: Callable[..., Result], store: Path, loaded: Mock
) -> None:
    run_id = train_small()
    folder = mlflow.artifacts.download_artifacts(uri(run_id), dst_path=str(store / "copy"))
    result = compare(folder, run_id)
    assert result.exit_code == 0, result.output
    assert "validation images" in result.stdout.splitlines()[-1]
    assert "Not compared" in result.stdout.splitlines()[-1]
    # It may be another model than that of the run which its description names.
    loaded.assert_called_once_with(folder)
    assert "val_a_accuracy" not in logged().data.metrics
    assert logged().data.metrics["test_a_accuracy"] == pytest.approx(accuracy(run_id, "test"))


def test_the_predictions_of_another_model_of_the_run_are_not_taken(
    train_small: Callable[..., str], compare: Callable[..., Result], store: Path, loaded: Mock
) -> None:
    a, b = train_small(), train_small("nonlinear")
    client = MlflowClient()
    other = client.create_logged_model(mlflow.get_run(a).info.experiment_id, source_run_id=a)
    client.log_model_artifacts(
        other.model_id, mlflow.artifacts.download_artifacts(uri(b), dst_path=str(store / "copy"))
    )
    client.finalize_logged_model(other.model_id, LoggedModelStatus.READY)
    assert compare(other.model_uri, b).exit_code == 0
    loaded.assert_called_once_with(other.model_uri)
    assert logged().data.metrics["test_a_accuracy"] == pytest.approx(accuracy(b, "test"))


def test_models_with_other_validation_images_are_compared_on_test_images_only(
    train_small: Callable[..., str], compare: Callable[..., Result]
) -> None:
    result = compare(train_small(), train_small(val_size=300))
    assert result.exit_code == 0, result.output
    assert "Not compared on validation images" in result.stdout
    assert "val_a_accuracy" not in logged().data.metrics


def test_models_that_were_tested_on_other_images_are_not_compared(
    train_small: Callable[..., str], compare: Callable[..., Result]
) -> None:
    a, b = train_small(), train_small("nonlinear")
    move_to_other_images(b, "test")
    message = assert_one_line(compare(a, b))
    assert f"nonlinear ({b[:8]}) was tested on other images" in message
    assert len(mlflow.search_runs(output_format="list")) == 2


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        ("models:/other/1", "models:/other/1", "models:/other/1 does not exist"),
        ("models:/other@best", "models:/other/1", "models:/other@best does not exist"),
        ("models:/m-0123", "models:/other/1", "models:/m-0123 cannot be loaded"),
        (f"runs:/{'0' * 32}/model", "models:/other/1", "cannot be loaded"),
        ("nowhere", "models:/other/1", "nowhere cannot be loaded"),
        ("0123abcd", "models:/other/1", "0123abcd is no run"),
    ],
)
def test_a_model_that_does_not_exist_is_one_line(
    compare: Callable[..., Result], a: str, b: str, problem: str
) -> None:
    assert problem in assert_one_line(compare(a, b))
    assert not mlflow.search_runs(output_format="list")


def test_the_other_model_is_the_champion(
    train_small: Callable[..., str], compare: Callable[..., Result]
) -> None:
    message = assert_one_line(compare(train_small(), ""))
    assert f"models:/{MODEL_NAME}@champion does not exist" in message


def test_a_model_must_be_named(compare: Callable[..., Result]) -> None:
    result = compare("", "x")
    assert result.exit_code == 2
    assert "Give two models to compare" in result.stderr
