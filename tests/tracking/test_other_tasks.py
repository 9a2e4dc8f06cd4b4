"""A model of other data than Fashion-MNIST, from training to the commands that use it."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
from mlflow.pyfunc import scoring_server
from PIL import Image

from entrypoints.diff import diff
from entrypoints.evaluate import evaluate
from entrypoints.explore import explore
from entrypoints.export import export
from entrypoints.predict import predict
from fashion.data import sources
from fashion.data.dataset import Dataset, Subset
from fashion.settings.experiment import Experiment, Recipe
from fashion.settings.task import Task
from fashion.tracking import archive, card, models, registry, training
from fashion.tracking.query import Query
from tests.conftest import assert_one_line

TOYS = Task("toys", "Toys", ("red", "green", "bl$u$e"), (3, 20, 20), mean=(0.5, 0.5, 0.5))


def shades(name: str, count: int) -> Subset:
    """Return noise in which one channel, the class, is lighter."""
    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(0, 120, (count, *TOYS.shape), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 3
    pixels[torch.arange(count), labels] += 100
    return Subset(name, pixels, labels, f"{name}{count}", TOYS)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    directory = tmp_path_factory.mktemp("toys")
    return Dataset(shades("toys-train", 300), shades("toys-test", 60), directory)


@pytest.fixture
def train(store: Path, toys: Dataset) -> Callable[..., str]:
    """Return a function that trains a model of toys and returns the run's id."""

    def run(model: str = "baseline", **recipe: float) -> str:
        settings = Recipe(epochs=3, lr=0.05, **recipe)
        asked = Experiment(model=model, val_size=30, device="cpu", recipe=settings)
        return training.train(asked, toys)

    return run


@pytest.fixture
def invoke(store: Path, toys: Dataset, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs a command where data=toys names the toys."""
    load = sources.load_dataset
    (store / "toys").mkdir()
    monkeypatch.setattr(
        sources, "load_dataset", lambda *asked: toys if "toys" in asked[1] else load(*asked)
    )
    return lambda command, *arguments: CliRunner().invoke(
        command, [str(each) for each in arguments]
    )


def picture(colour: int, size: tuple[int, int] = (90, 60)) -> bytes:
    """Return a JPEG in one colour, as a photograph may be: not square."""
    levels = np.full((size[1], size[0], 3), 60, np.uint8)
    levels[..., colour] = 160
    content = io.BytesIO()
    Image.fromarray(levels).save(content, "JPEG", quality=95)
    return content.getvalue()


def uri_of(run_id: str) -> str:
    return models.model_uri(mlflow.get_run(run_id))


def test_a_stored_model_says_what_it_classifies(train: Callable[..., str]) -> None:
    uri = uri_of(train())
    assert models.load_calibrated(uri).task == archive.task_of(uri) == TOYS
    info = mlflow.models.get_model_info(uri)
    assert info.signature.outputs.input_names() == ["class", "probability"]
    assert [each.name for each in info.signature.params.params] == ["top"]
    assert info.metadata["description"]["outputs"].startswith("class, one of red, green, bl$u$e;")
    assert "20x20 pixels in 3 channels" in info.metadata["description"]["inputs"]


def test_the_stored_model_names_pictures_of_any_size(
    train: Callable[..., str], toys: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlflow.pyfunc.load_model(uri_of(train()))
    answers = model.predict([picture(2), picture(0, size=(31, 200))], params={"top": 3})
    assert answers.columns.tolist() == [
        *("class", "probability", "class_2", "probability_2", "class_3", "probability_3")
    ]
    assert answers["class"].tolist() == ["bl$u$e", "red"]

    by_pixels = model.predict(toys.test.images.numpy())
    expected = [TOYS.classes[label] for label in toys.test.labels]
    assert (by_pixels["class"] == expected).mean() > 0.9

    # What MLflow's server answers is the same.
    monkeypatch.setenv(_MLFLOW_IS_IN_SERVING_ENVIRONMENT.name, "true")
    texts = [[base64.b64encode(picture(colour)).decode()] for colour in (2, 0)]
    body = {"dataframe_split": {"columns": ["image"], "data": texts}}
    served = scoring_server.invocations(
        json.dumps(body).encode(), "application/json", model, model.metadata.get_input_schema()
    )
    rows = json.loads(served.response)["predictions"]
    assert [list(row) for row in rows] == [["class", "probability"]] * 2
    assert [row["class"] for row in rows] == ["bl$u$e", "red"]


def test_files_are_classified_without_the_data_of_the_model(
    train: Callable[..., str], invoke: Callable[..., Result], store: Path
) -> None:
    run_id = train()
    folders = ("Red", "BLUE", "bl$u$e")
    for number, (folder, colour) in enumerate(zip(folders, (0, 2, 2), strict=True)):
        (store / "photos" / folder).mkdir(parents=True)
        (store / "photos" / folder / f"{number}.jpg").write_bytes(picture(colour))
    options = ["--output", "out.csv", "--figure", "grid.png"]
    result = invoke(predict, "--model-uri", run_id, "--images", "photos", *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == "3 images: 2 bl$u$e, 1 red\n"
    table = pd.read_csv("out.csv")
    assert table.columns.tolist() == ["image", "true", "rank", "predicted", "probability"]
    assert table["rank"].tolist() == [1, 2, 3] * 3

    result = invoke(evaluate, "--model-uri", run_id, "--images", "photos")
    assert result.exit_code == 0, result.output
    assert "3 of 3 labelled images are right" in result.stdout
    refused = invoke(predict, "--model-uri", run_id, "--images", "photos", "--invert", "never")
    assert "pictures are not inverted for Toys" in refused.stderr
    assert refused.exit_code == 2


def test_test_images_come_from_the_data_that_are_named(
    train: Callable[..., str], invoke: Callable[..., Result], store: Path
) -> None:
    a, b = train(), train("nonlinear")
    result = invoke(predict, "--data", "toys", "--model-uri", a, "--indices", "0-2", "--top", 1)
    assert result.exit_code == 0, result.output
    assert "test image 2 (true class: bl$u$e)" in result.stdout
    result = invoke(evaluate, "--data", "toys", "--model-uri", a)
    assert " of 60 test images are right" in result.stdout, result.output
    result = invoke(diff, "--data", "toys", "--a", a, "--b", b)
    assert "30 validation images" in result.stdout, result.output
    result = invoke(explore, "--data", "toys", "--model-uri", a, "--index", 59)
    assert "1200" in result.stdout, result.output
    pytest.importorskip("onnxruntime")
    result = invoke(export, "--data", "toys", "--model-uri", a, "--format", "onnx")
    assert "60 test images" in result.stdout, result.output
    assert (store / "models" / "toys.onnx").exists()


def test_the_champion_is_that_of_the_data(invoke: Callable[..., Result], store: Path) -> None:
    for command, *arguments in (
        (predict, "--indices", "0"),
        (evaluate,),
        (diff, "--a", "models:/toys@champion"),
        (export,),
    ):
        message = assert_one_line(invoke(command, "--data", "toys", *arguments))
        assert "models:/toys@champion does not exist" in message


def test_a_model_of_other_data_is_one_line_that_says_what_to_add(
    train: Callable[..., str], invoke: Callable[..., Result]
) -> None:
    run_id = train()
    before = len(mlflow.search_runs(output_format="list"))
    for command, *arguments in (
        (predict, "--indices", "0", "--model-uri", run_id),
        (evaluate, "--model-uri", run_id),
        (diff, "--a", run_id, "--b", run_id),
        (explore, "--model-uri", run_id),
    ):
        message = assert_one_line(invoke(command, *arguments))
        assert (
            "classifies Toys (3x20x20, 3 classes), not Fashion-MNIST (1x28x28, 10 classes):"
            " add data=...\n"
        ) in message
    assert len(mlflow.search_runs(output_format="list")) == before


def test_the_registered_model_is_described_as_one_of_its_data(
    train: Callable[..., str], toys: Dataset
) -> None:
    train()
    registry.register("toys", Query(models=["baseline"]), toys)
    client = mlflow.MlflowClient()
    described = client.get_registered_model("toys").description
    assert described.startswith("Names the class of a picture, one of 3: red, green, bl$u$e.\n")
    version = client.get_model_version("toys", "1").description
    assert version.startswith("baseline for Toys: ")
    assert (
        "270 training images, 30 held out for validation (stratified, seed 42), 60 test" in version
    )
    assert "logits of shape (N, 3)" in version
    assert "Fashion" not in described + version
    assert "catalogue" not in version


def test_of_many_classes_a_description_names_the_first() -> None:
    many = replace(TOYS, classes=tuple(f"class {number}" for number in range(200)))
    (first, *_) = card.registered_model("many", many).splitlines()
    assert first.startswith("Names the class of a picture, one of 200: class 0, class 1, ")
    assert first.endswith(", class 9 and 190 more.")


@pytest.mark.parametrize(
    ("option", "named"),
    [(["--indices", "60"], "within 0 to 59"), (["--indices", "0", "--top", "4"], "the 3 classes")],
)
def test_more_than_there_is_is_a_usage_error(
    train: Callable[..., str], invoke: Callable[..., Result], option: list[str], named: str
) -> None:
    result = invoke(predict, "--data", "toys", "--model-uri", train(), *option)
    assert result.exit_code == 2
    assert named in " ".join(result.stderr.split())
