"""`evaluate` measures any model on the test set or on labelled pictures."""

from collections.abc import Callable
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from click.testing import Result
from mlflow.entities import Run
from PIL import Image

from entrypoints.evaluate import evaluate
from fashion.analysis import predictions
from fashion.data.dataset import Dataset
from fashion.tracking import models
from tests.conftest import assert_one_line


@pytest.fixture
def run_evaluate(invoke: Callable[..., Result]) -> Callable[..., Result]:
    return lambda *arguments: invoke(evaluate, [str(each) for each in arguments])


@pytest.fixture
def photos(small: Dataset, store: Path) -> Path:
    """Ten pictures of three classes, as they are in the test set, and a text file."""
    names = {9: "Ankle boot", 2: "pullover", 1: "TROUSER"}
    rows = [index for index, label in enumerate(small.test.labels.tolist()) if label in names]
    for index in rows[:10]:
        folder = store / "photos" / names[int(small.test.labels[index])]
        folder.mkdir(parents=True, exist_ok=True)
        image = small.test.images[index].squeeze(0).numpy()
        Image.fromarray(image).save(folder / f"={index}.png")
    (store / "photos" / "notes.txt").touch()
    return store / "photos"


def logged() -> Run:
    """Return the run that the evaluation was logged to."""
    (run,) = mlflow.search_runs(filter_string="run_name LIKE 'evaluate: %'", output_format="list")
    return mlflow.get_run(run.info.run_id)


def artifact(run: Run, name: str) -> Path:
    return Path(run.info.artifact_uri, name)


def test_a_model_gives_on_the_test_set_what_its_run_has_logged(
    train_small: Callable[..., str], run_evaluate: Callable[..., Result]
) -> None:
    trained = mlflow.get_run(train_small())
    result = run_evaluate("--model-uri", trained.info.run_id[:8])
    assert result.exit_code == 0, result.output
    name = f"baseline ({trained.info.run_id[:8]})"
    assert result.stdout.startswith(f"{name}\n")
    assert " of 500 test images are right: " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80

    run = logged()
    assert run.info.run_name == f"evaluate: {name}"
    assert run.info.run_id in result.stderr
    for metric in ("test_accuracy", "test_loss", "test_ece"):
        assert run.data.metrics[metric] == pytest.approx(trained.data.metrics[metric], abs=1e-5)
    assert "model" not in run.data.tags  # it is no training run
    assert "confusion_matrix.png" in run.data.tags["mlflow.note.content"]
    for file in ("confusion_matrix.png", "precision_recall.png", "per_class.json"):
        assert artifact(run, file).exists()
    assert predictions.read(artifact(run, predictions.FILE)).keys() == {"test"}

    (linked,) = run.inputs.model_inputs
    assert f"models:/{linked.model_id}" == models.model_uri(trained)
    (data,) = run.inputs.dataset_inputs
    of_model = mlflow.get_logged_model(linked.model_id).metrics
    ours = [metric for metric in of_model if metric.run_id == run.info.run_id]
    assert {metric.key for metric in ours} == run.data.metrics.keys()
    assert {metric.dataset_digest for metric in ours} == {data.dataset.digest}


def test_labelled_pictures_are_evaluated_by_the_names_of_their_folders(
    train_small: Callable[..., str],
    run_evaluate: Callable[..., Result],
    photos: Path,
    small: Dataset,
) -> None:
    run_id = train_small()
    result = run_evaluate("--model-uri", run_id, "--images", "photos")
    assert result.exit_code == 0, result.output
    assert " of 10 labelled images are right: " in result.stdout
    assert "Bag " not in result.stdout  # there is none
    assert "passed over, as they are no labelled pictures: photos/notes.txt" in result.stderr

    run = logged()
    table = pd.read_csv(artifact(run, "predictions.csv"))
    assert table["image"].str.startswith("photos/").all()
    assert (table["true"] == table["predicted"]).mean() == run.data.metrics["labelled_accuracy"]
    rows = table["image"].str.extract(r"=(\d+)")[0].astype(int).tolist()
    whole = predictions.read(artifact(mlflow.get_run(run_id), predictions.FILE))["test"]
    found = predictions.read(artifact(run, predictions.FILE))["labelled"]
    assert found.predicted.tolist() == whole.predicted[rows].tolist()
    assert found.labels.tolist() == small.test.labels[rows].tolist()
    (data,) = run.inputs.dataset_inputs
    assert str(photos) in data.dataset.source
    assert not artifact(run, "precision_recall.png").exists()


def test_a_model_that_the_store_does_not_know_is_evaluated_too(
    train_small: Callable[..., str], run_evaluate: Callable[..., Result], store: Path
) -> None:
    trained = mlflow.get_run(train_small())
    folder = mlflow.artifacts.download_artifacts(
        models.model_uri(trained), dst_path=str(store / "copy")
    )
    result = run_evaluate("--model-uri", folder)
    assert result.exit_code == 0, result.output
    accuracy = trained.data.metrics["test_accuracy"]
    assert logged().data.metrics["test_accuracy"] == pytest.approx(accuracy)
    assert not logged().inputs.model_inputs


def test_a_diverged_model_is_reported_without_the_figures_that_it_cannot_have(
    train_small: Callable[..., str], run_evaluate: Callable[..., Result]
) -> None:
    result = run_evaluate("--model-uri", train_small(lr=1e9))
    assert result.exit_code == 0, result.output
    assert not artifact(logged(), "reliability.png").exists()


@pytest.mark.usefixtures("photos")
def test_a_folder_without_labelled_pictures_is_one_line_and_no_run(
    train_small: Callable[..., str], run_evaluate: Callable[..., Result]
) -> None:
    run_id = train_small()
    for folder, problem in (
        ("missing", "cannot read missing: No such file"),
        ("photos/pullover", "has no folders named after the classes"),
        (".", "is named after none of the classes"),
    ):
        result = run_evaluate("--model-uri", run_id, "--images", folder)
        assert problem in assert_one_line(result), folder
    assert len(mlflow.search_runs(output_format="list")) == 1


@pytest.mark.usefixtures("photos")
def test_bad_input_is_one_line_and_no_run(run_evaluate: Callable[..., Result]) -> None:
    for arguments, problem in (
        (["--images", "photos"], "models:/fashion-mnist-cnn@champion does not exist"),
        ([], "models:/fashion-mnist-cnn@champion does not exist"),
        (["--model-uri", "models:/it's/1"], "models:/it's/1"),
        (["--model-uri", "nowhere"], "nowhere cannot be loaded"),
    ):
        assert problem in assert_one_line(run_evaluate(*arguments)), arguments
    assert not mlflow.search_runs(output_format="list")
    assert run_evaluate("--invert", "maybe").exit_code == 2
