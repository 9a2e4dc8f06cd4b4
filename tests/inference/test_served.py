"""The face of a model that takes pictures, without MLflow's store and server."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.environment_variables import _MLFLOW_IS_IN_SERVING_ENVIRONMENT
from mlflow.exceptions import MlflowException
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import nn

from fashion.data.dataset import Dataset
from fashion.inference import predict
from fashion.portable.served import Served
from fashion.settings.task import FASHION_MNIST

TEMPERATURE = 1.7
FLOATS = "floats must be within 0 to 1"


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()


@pytest.fixture(scope="module")
def model(network: nn.Module) -> Served:
    return Served(network, FASHION_MNIST.classes, TEMPERATURE, FASHION_MNIST.shape, extract=True)


@pytest.fixture(scope="module")
def levels(dataset: Dataset) -> NDArray[np.uint8]:
    """uint8, shape (3, 28, 28)."""
    return dataset.test.images[:3].squeeze(1).numpy()


def png(pixels: NDArray[np.uint8]) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def photograph(pixels: NDArray[np.uint8], ground: NDArray | int = 230) -> Image.Image:
    """A dark garment, large, on a light ground."""
    garment = ImageOps.expand(Image.fromarray(pixels).resize((280, 280)), 60)
    darkness = np.asarray(garment, dtype=float) / 255
    return Image.fromarray((ground * (1 - 0.9 * darkness)).astype(np.uint8))


def checked() -> NDArray[np.int64]:
    return 160 + 60 * ((np.indices((400, 400)) // 20).sum(axis=0) % 2)


FORMS: dict[str, Callable[[NDArray[np.uint8]], object]] = {
    "uint8": lambda levels: levels,
    "channel": lambda levels: levels[:, None],
    "flat": lambda levels: levels.reshape(3, 784),
    "int64": lambda levels: levels.astype(np.int64),
    "float32": lambda levels: (levels / 255).astype(np.float32),
    "float64": lambda levels: levels / 255,
    "lists": lambda levels: levels.tolist(),
    "tensor": lambda levels: torch.from_numpy(levels),
    "list of images": list,
    "column": lambda levels: pd.DataFrame({"image": list(levels), "note": "a"}),
    "columns": lambda levels: pd.DataFrame(levels.reshape(3, 784)),
    "mapping": lambda levels: {"image": levels},
    "mappings": lambda levels: [{"image": level.tolist()} for level in levels],
    "series": lambda levels: pd.Series(list(levels)),
    "files": lambda levels: [png(level) for level in levels],
    "base64": lambda levels: [base64.b64encode(png(level)).decode() for level in levels],
    "lines of base64": lambda levels: [base64.encodebytes(png(level)).decode() for level in levels],
    "column of files": lambda levels: pd.DataFrame({"image": [png(level) for level in levels]}),
    "array of files": lambda levels: np.array([png(level) for level in levels], dtype=object),
    "all kinds": lambda levels: [png(levels[0]), levels[1].reshape(1, 28, 28), levels[2] / 255],
}


@pytest.mark.parametrize("form", FORMS)
def test_pictures_of_every_form_get_the_same_answer(
    model: Served, network: nn.Module, levels: NDArray[np.uint8], form: str
) -> None:
    answers = model.predict(FORMS[form](levels))
    logits = network(torch.from_numpy(levels / 255).float()) / TEMPERATURE
    best = logits.softmax(dim=1).max(dim=1)
    assert answers.columns.tolist() == ["class", "probability", "ground"]
    assert answers["class"].tolist() == [FASHION_MNIST.classes[index] for index in best.indices]
    assert answers["probability"].to_numpy() == pytest.approx(best.values.detach().numpy())
    assert answers["ground"].tolist() == ["plain"] * 3


@pytest.mark.parametrize("given", [Path, str, lambda path: Path(path).read_bytes()])
def test_one_picture_is_one_row(
    model: Served, levels: NDArray[np.uint8], tmp_path: Path, given: Callable[[str], object]
) -> None:
    (tmp_path / "boot").write_bytes(png(levels[0]))
    expected = model.predict(levels[0])
    assert len(expected) == 1
    pd.testing.assert_frame_equal(model.predict(given(str(tmp_path / "boot"))), expected)


def test_the_index_of_a_table_is_kept(model: Served, levels: NDArray[np.uint8]) -> None:
    table = pd.DataFrame({"image": list(levels)}, index=["a", "b", "c"])
    assert model.predict(table).index.tolist() == ["a", "b", "c"]


def test_the_best_classes_come_side_by_side(model: Served, levels: NDArray[np.uint8]) -> None:
    answers = model.predict(levels, {"top": 3, "invert": "auto"})
    assert answers.columns.tolist() == [
        *("class", "probability", "ground"),
        *("class_2", "probability_2", "class_3", "probability_3"),
    ]
    assert (answers["probability"] >= answers["probability_2"]).all()
    assert (answers["probability_2"] >= answers["probability_3"]).all()
    everything = model.predict(levels, {"top": 10}).filter(like="probability")
    assert everything.sum(axis=1).to_numpy() == pytest.approx(1)


@pytest.mark.parametrize(
    "nothing",
    [[], np.zeros((0, 28, 28), np.uint8), np.zeros((0, 784)), pd.DataFrame({"image": []})],
)
def test_no_pictures_are_no_rows(model: Served, nothing: object) -> None:
    answers = model.predict(nothing)
    assert len(answers) == 0
    assert answers.columns.tolist() == ["class", "probability", "ground"]


@pytest.mark.parametrize("ground", [230, 120, "checked"])
def test_predict_and_the_served_model_agree_on_a_photograph(
    model: Served,
    network: nn.Module,
    levels: NDArray[np.uint8],
    tmp_path: Path,
    ground: int | str,
) -> None:
    path = tmp_path / "photo.jpg"
    photograph(levels[0], checked() if ground == "checked" else ground).save(path)
    (by_command,) = predict.classify(network, [predict.from_file(path, "auto")], 3, TEMPERATURE)
    (served,) = model.predict(path, {"top": 3}).to_dict("records")
    assert [served["class"], served["class_2"], served["class_3"]] == by_command.classes
    assert by_command.sample.cluttered == (ground == "checked")
    if by_command.sample.cluttered:
        assert (served["ground"], served["probability"]) == ("cluttered", None)
    else:
        assert served["ground"] == "plain"
        assert served["probability"] == pytest.approx(by_command.probabilities[0])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (lambda levels: levels.astype(float), f"{FLOATS}, these are 0 to 255; divide by 255"),
        (lambda levels: levels / -255.0, f"{FLOATS}, these are -1 to"),
        (np.full((2, 28, 28), np.nan), FLOATS),
        (lambda levels: levels.astype(int) * 2, "integers must be within 0 to 255"),
        (lambda levels: levels.astype(int) - 1, "integers must be within 0 to 255"),
        (lambda levels: levels.astype(complex), "the pixels are complex128"),
        (lambda levels: levels > 9, "the pixels are bool"),
        (lambda levels: levels[:, :14], "the shape is (3, 14, 28), not (28, 28)"),
        (lambda levels: [b"", levels[0, :14]], "not an image in one of the formats"),
        (lambda levels: [png(levels[0]), levels[0, :14]], "the shape is (14, 28)"),
        ([[1, 2], [3]], "the images have different shapes"),
        (lambda levels: {"picture": levels}, 'there is no column "image"'),
        (pd.DataFrame([["a", "b"]], columns=["image"] * 2), 'there are several columns "image"'),
        (lambda levels: np.array([png(levels[0])]), "numpy cuts zeros off the end of bytes"),
        (b"hello", "not an image in one of the formats PNG, JPEG"),
        (lambda levels: png(levels[0])[:90], ""),
        (png(np.full((99, 99), 9, np.uint8)), "nothing stands out"),
        (png(np.zeros((5_000, 10_000), np.uint8)), "10000x5000 pixels exceed"),
        ("boot.png", "the text is not the path of an existing file or base64"),
        ("a\0b", "the text is not the path of an existing file or base64"),
        ("x!" * 10_000, "the text is not the path"),
        (Path("boot.png"), "No such file or directory"),
        (Path(), "a folder is no picture"),
        (3, "int is no picture"),
        ([None], "NoneType is no picture"),
    ],
)
def test_what_is_no_picture_is_refused_with_the_reason_first(
    model: Served, levels: NDArray[np.uint8], given: object, reason: str
) -> None:
    with pytest.raises(MlflowException) as refused:
        model.predict(given(levels) if callable(given) else given)
    message = refused.value.message
    assert message.startswith(reason)
    assert message.isprintable()
    assert len(message) < 200
    assert refused.value.get_http_status_code() == 400


def test_the_server_cannot_put_the_data_before_the_reason(model: Served) -> None:
    with pytest.raises(MlflowException) as refused:
        model.predict(b"hello")
    refused.value.message = "Failed to predict data 'iVBORw0KGgo"
    assert "Failed" not in refused.value.serialize_as_json()


@pytest.mark.parametrize("params", [{"top": 0}, {"top": 11}, {"invert": "maybe"}])
def test_wrong_parameters_are_refused(
    model: Served, levels: NDArray[np.uint8], params: dict[str, object]
) -> None:
    with pytest.raises(MlflowException, match=r"^(top|invert) is"):
        model.predict(levels, params)


def test_the_picture_that_is_wrong_is_named(model: Served, levels: NDArray[np.uint8]) -> None:
    with pytest.raises(MlflowException, match=r"\(picture 2\)$"):
        model.predict([png(levels[0]), b"hello", png(levels[1])])


def test_behind_a_server_no_file_is_opened(
    model: Served, levels: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot.png").write_bytes(png(levels[0]))
    path = str(tmp_path / "boot.png")
    assert len(model.predict(path)) == 1
    monkeypatch.setenv(_MLFLOW_IS_IN_SERVING_ENVIRONMENT.name, "true")
    for given in (path, [path], np.array([path]), pd.DataFrame({"image": [path]})):
        with pytest.raises(MlflowException, match=r"the text is not base64 "):
            model.predict(given)


def test_the_model_itself_takes_what_every_module_takes(network: nn.Module, model: Served) -> None:
    raw = model.get_raw_model()
    assert raw.eval() is raw
    assert raw.train(False) is raw
    assert raw.to("cpu") is raw
    assert not raw.training
    images = torch.rand(2, 1, 28, 28)
    assert torch.equal(raw(images), network(images))
    with pytest.raises(NotImplementedError, match="cannot be trained"):
        raw.train()


@pytest.fixture(scope="module")
def toys() -> Served:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(1200, 3)).eval()
    return Served(network, ["ant", "bee", "cat"], TEMPERATURE, (3, 20, 20), extract=False)


COLOURED: dict[str, Callable[[NDArray[np.uint8]], object]] = {
    "channels first": lambda levels: levels,
    "channels last": lambda levels: levels.transpose(0, 2, 3, 1),
    "flat": lambda levels: levels.reshape(-1, 1200),
    "floats": lambda levels: levels / 255,
    "columns": lambda levels: pd.DataFrame(levels.reshape(-1, 1200)),
    "files": lambda levels: [png(level.transpose(1, 2, 0)) for level in levels],
    "all kinds": lambda levels: [
        png(levels[0].transpose(1, 2, 0)),
        levels[1].transpose(1, 2, 0),
        levels[2].reshape(-1) / 255,
        *levels[3:],
    ],
}


@pytest.mark.parametrize("form", COLOURED)
def test_pictures_in_colour_of_every_form_get_the_same_answer(toys: Served, form: str) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (110, 3, 20, 20), dtype=np.uint8)
    answers = toys.predict(COLOURED[form](levels))
    expected = toys.get_raw_model()(torch.from_numpy(levels / 255).float()) / TEMPERATURE
    assert answers.columns.tolist() == ["class", "probability"]
    best = expected.softmax(dim=1).max(dim=1).values.detach().numpy()
    assert answers["probability"].to_numpy() == pytest.approx(best)
    one = toys.predict(levels[0])
    pd.testing.assert_frame_equal(one, answers.head(1))
    pd.testing.assert_frame_equal(toys.predict(levels[0].transpose(1, 2, 0)), one)


def test_an_image_of_one_channel_may_have_it_last(model: Served, levels: NDArray[np.uint8]) -> None:
    expected = model.predict(levels)
    pd.testing.assert_frame_equal(model.predict(levels[..., None]), expected)
    pd.testing.assert_frame_equal(model.predict(levels[0, ..., None]), expected.head(1))


def test_a_picture_is_resized_where_no_foreground_is_cut_out(toys: Served) -> None:
    """Nothing stands out from this one, and no picture is too cluttered."""
    whole = np.full((3, 20, 20), 140, np.uint8)
    large = png(np.full((99, 50, 3), 140, np.uint8))
    pd.testing.assert_frame_equal(toys.predict(large), toys.predict(whole))
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    assert toys.predict(png(noise))["probability"].item() > 0


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            np.zeros((2, 3, 28, 28)),
            "the shape is (2, 3, 28, 28), not (3, 20, 20), (N, 3, 20, 20), (N, 20, 20, 3) or"
            " (N, 1200)",
        ),
        (
            [np.zeros(784), b""],
            "the shape is (784,), not (3, 20, 20), (20, 20, 3) or (1200,) (picture",
        ),
        (np.zeros((20, 20)), "the shape is (20, 20), not"),
        (np.zeros(1200), "the shape is (1200,), not"),
        (pd.DataFrame(np.zeros((1, 784))), 'there is no column "image", and not 1200 columns'),
        ([b"", *[b"hello"] * 110], "not an image in one of the formats"),
    ],
)
def test_pixels_of_another_shape_are_refused(toys: Served, given: object, reason: str) -> None:
    with pytest.raises(MlflowException) as refused:
        toys.predict(given)
    assert refused.value.message.startswith(reason)


def test_the_wrong_picture_of_a_later_batch_is_named(toys: Served) -> None:
    right = png(np.zeros((20, 20, 3), np.uint8))
    with pytest.raises(MlflowException, match=r"\(picture 151\)$"):
        toys.predict([*[right] * 150, b"hello", *[right] * 80])


def test_a_table_and_what_mlflows_server_answers_are_the_same(
    model: Served, toys: Served, levels: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [png(levels[0]), png(np.asarray(photograph(levels[1], checked())))]
    for pictures in (given, []):
        table = model.predict(pictures, {"top": 2})
        with monkeypatch.context() as served:
            served.setenv(_MLFLOW_IS_IN_SERVING_ENVIRONMENT.name, "true")
            assert model.predict(pictures, {"top": 2}) == table.to_dict("records")
            assert all("ground" not in row for row in toys.predict(pictures))


def test_pictures_are_not_all_held_in_memory(toys: Served) -> None:
    """A photograph takes a hundred times as much as a tensor as in its file."""
    batches = []
    large = Served(
        nn.Sequential(nn.AvgPool2d(256), nn.Flatten()), ["a"] * 48, 1, (3, 1024, 1024), False
    )
    large.get_raw_model().register_forward_hook(
        lambda _module, inputs, _output: batches.append(len(inputs[0]))
    )
    assert len(large.predict([png(np.zeros((9, 9, 3), np.uint8))] * 11)) == 11
    assert batches == [5, 5, 1]
