"""Image files become what the dataset holds, and `predict` names what they show."""

import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image, ImageOps
from torch import Tensor, nn

from entrypoints.predict import predict as command
from fashion.data.dataset import Dataset, Subset
from fashion.errors import printable
from fashion.files import FileError
from fashion.inference import photographs, predict
from fashion.models import catalogue
from fashion.portable import conversion
from fashion.settings.experiment import Recipe
from fashion.settings.task import FASHION_MNIST
from fashion.tracking import models, store
from fashion.training import evaluation, loop
from tests.conftest import HANG_SECONDS, ROOT, assert_one_line


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> nn.Module:
    """A linear classifier that has seen 10,000 images: right four times of five."""
    model = catalogue.build("baseline", seed=42)
    seen = Subset("seen", dataset.train.images[:10_000], dataset.train.labels[:10_000], "")
    for _ in loop.train(model, seen, Recipe(epochs=2)):
        pass
    return model


@pytest.fixture
def run(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs the command with that model in place of the registry's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "connect", lambda: None)
    monkeypatch.setattr(models, "load_calibrated", Mock(return_value=(model, 1.0, FASHION_MNIST)))

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(command, [str(argument) for argument in arguments])

    return invoke


def picture(image: Tensor) -> Image.Image:
    return Image.fromarray(image.squeeze(0).numpy())


def photograph(image: Tensor, ground: int = 255) -> Image.Image:
    """Make a large picture in colour, dark on light, as the dataset's sources were."""
    large = ImageOps.invert(picture(image).resize((280, 280), Image.Resampling.BICUBIC))
    light = (ground, ground, ground)
    return ImageOps.expand(
        ImageOps.colorize(large, black=(0, 0, 60), white=light, mid=(110, 120, 160)), 60, light
    )


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_every_image_of_the_test_set_is_taken_as_it_is(dataset: Dataset) -> None:
    taken = torch.stack([conversion.convert(picture(image)).image for image in dataset.test.images])
    assert torch.equal(taken, dataset.test.images)


def test_every_negative_of_the_test_set_is_recognised(dataset: Dataset) -> None:
    negatives = 255 - dataset.test.images
    taken = torch.stack([conversion.convert(picture(image)).image for image in negatives])
    assert torch.equal(taken, dataset.test.images)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_colour_modes_of_png_lose_nothing(dataset: Dataset, tmp_path: Path, mode: str) -> None:
    image = dataset.test.images[0]
    path = save(picture(image).convert(mode), tmp_path / "boot.png")
    assert torch.equal(photographs.read(path).image, image)


def test_16_bit_png_is_scaled_not_clipped(dataset: Dataset, tmp_path: Path) -> None:
    image = dataset.test.images[0]
    deep = Image.fromarray(image.squeeze(0).numpy().astype(np.uint16) * 257)
    assert deep.mode == "I;16"
    assert torch.equal(photographs.read(save(deep, tmp_path / "deep.png")).image, image)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg_is_close(dataset: Dataset, tmp_path: Path, mode: str) -> None:
    image = dataset.test.images[0]
    path = save(picture(image).convert(mode), tmp_path / "boot.jpg", quality=95)
    difference = photographs.read(path).image.float() - image.float()
    assert difference.abs().mean() < 4


@pytest.mark.parametrize("name", ["turned.jpg", "turned.png"])
def test_exif_orientation_is_followed(dataset: Dataset, tmp_path: Path, name: str) -> None:
    upright = photograph(dataset.test.images[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = save(upright.transpose(Image.Transpose.ROTATE_90), tmp_path / name, exif=exif)
    difference = photographs.read(turned).image.float() - conversion.convert(upright).image.float()
    assert difference.abs().mean() < 2


@pytest.mark.parametrize(("invert", "garment"), [("auto", 255), ("always", 255), ("never", 0)])
def test_transparent_pixels_become_background(invert: str, garment: int) -> None:
    """The hidden colour under them does not matter; the garment here is black."""
    cut_out = Image.new("RGBA", (28, 28), (200, 100, 50, 0))
    cut_out.paste((0, 0, 0, 255), (10, 10, 20, 20))
    converted = conversion.convert(cut_out, invert).image
    assert converted[0, 15, 15] == garment
    assert converted[0, :10].max() == 0


@pytest.mark.parametrize(
    ("ground", "invert"), [(255, "auto"), (255, "always"), (0, "auto"), (0, "never")]
)
def test_garment_fills_the_height_and_is_centred_on_black(ground: int, invert: str) -> None:
    scene = Image.new("RGB", (800, 600), (ground, ground, ground))
    garment = 255 - ground
    scene.paste((garment, garment, garment), (500, 100, 700, 500))  # 200 wide, 400 high
    converted = conversion.convert(scene, invert).image
    assert converted.shape == (1, 28, 28)
    assert converted.dtype == torch.uint8
    assert converted[:, :, :7].max() == 0
    assert converted[:, :, 21:].max() == 0
    assert converted[:, :, 7:21].min() > 127  # the edges are smoothed
    assert converted[:, 1:-1, 8:20].min() > 240


def on_ground(ground: int, garment: int, shadow: int | None = None) -> Image.Image:
    scene = Image.new("L", (200, 200), ground)
    if shadow is not None:
        scene.paste(shadow, (140, 50, 155, 170))
    scene.paste(garment, (60, 40, 140, 160))
    return scene


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize(
    ("ground", "garment"), [(215, 250), (128, 200), (35, 90), (215, 40), (128, 60), (60, 15)]
)
def test_what_stands_out_more_is_the_garment_on_any_ground(
    ground: int, garment: int, shadow: bool
) -> None:
    taken = conversion.convert(on_ground(ground, garment, ground - 35 if shadow else None)).image
    assert taken[0, 3:24, 10:16].min() > 20
    assert taken[0, :, :3].max() == 0


@pytest.mark.parametrize("tone", [0, 60, 190, 255])
def test_a_cut_out_is_the_garment_whatever_its_tone(tone: int) -> None:
    cut_out = Image.new("LA", (200, 200), (90, 0))
    cut_out.paste((tone, 255), (60, 40, 140, 160))
    taken = conversion.convert(cut_out).image
    assert taken[0, 2:-2, 8:20].min() > 180
    assert taken[0, :, :4].max() == 0


def test_grey_noisy_ground_becomes_black(dataset: Dataset) -> None:
    """Camera noise must not be taken for the garment's edge: the crop would be the whole image."""
    boot = dataset.test.images[0]
    clean = conversion.convert(photograph(boot, ground=215).resize((200, 200))).image
    pixels = np.asarray(photograph(boot, ground=215).resize((200, 200)), dtype=float)
    noise = np.random.default_rng(0).normal(0, 4, (200, 200, 1))
    noisy = conversion.convert(
        Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))
    ).image
    assert (noisy.float() - clean.float()).abs().mean() < 8
    black = [
        (image <= conversion.BACKGROUND_TOLERANCE).float().mean().item()
        for image in (clean, noisy, boot)
    ]
    assert black == pytest.approx([black[-1]] * 3, abs=0.1)


@pytest.mark.parametrize("garment", [(60, 40, 140, 160), (0, 60, 200, 110)])
@pytest.mark.parametrize("ground", ["plain", "noisy", "shaded"])
def test_plain_ground_is_not_cluttered(ground: str, garment: tuple[int, int, int, int]) -> None:
    levels = np.full((200, 200), 180.0)
    if ground == "noisy":
        levels += np.random.default_rng(0).normal(0, 4, levels.shape)
    if ground == "shaded":
        levels += np.linspace(-10, 10, 200)
    scene = Image.fromarray(levels.astype(np.uint8))
    scene.paste(60, garment)
    assert not conversion.convert(scene).cluttered


@pytest.mark.parametrize("ground", ["planks", "tiles", "two walls", "dark corner"])
def test_a_garment_among_other_things_is_on_cluttered_ground(ground: str) -> None:
    rows, columns = np.indices((200, 200))
    levels = {
        "planks": 130 + 20 * np.sin(rows),
        "tiles": 130 + 60 * ((rows // 25 + columns // 25) % 2),
        "two walls": 200 - 120 * (rows > 100),
        "dark corner": 200 - 100 * (rows + columns) / 400,
    }[ground]
    scene = Image.fromarray(levels.astype(np.uint8))
    scene.paste(20, (60, 40, 140, 160))
    assert conversion.convert(scene).cluttered


def test_first_frame_of_an_animated_png_counts(dataset: Dataset, tmp_path: Path) -> None:
    boot, pullover = (picture(image) for image in dataset.test.images[:2])
    path = save(boot, tmp_path / "moving.png", save_all=True, append_images=[pullover])
    assert torch.equal(photographs.read(path).image, dataset.test.images[0])


def jpeg(size: tuple[int, int]) -> bytes:
    content = io.BytesIO()
    Image.linear_gradient("L").resize(size).save(content, "JPEG")
    return content.getvalue()


def encoded(image: Image.Image, image_format: str, **options: bool) -> bytes:
    content = io.BytesIO()
    image.save(content, image_format, **options)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image in one of the formats PNG, JPEG"),
        (b"hello", "not an image in one of the formats PNG, JPEG"),
        (encoded(Image.new("L", (28, 28)), "PPM"), "not an image in one of the formats PNG, JPEG"),
        (jpeg((300, 300))[:900], "truncated"),
        (encoded(Image.new("1", (9_000, 8_000)), "PNG"), "exceed the limit of 32,500,000"),
        (encoded(Image.new("1", (10_000, 10_000)), "PNG"), "exceed the limit of 32,500,000"),
        (encoded(Image.new("1", (14_000, 13_000)), "PNG"), "exceeds limit"),
        (
            encoded(Image.new("L", (7_000, 5_000)), "JPEG", progressive=True),
            "exceed the limit of 32,500,000",
        ),
        (encoded(Image.new("RGB", (100, 100), "white"), "PNG"), "nothing stands out"),
    ],
    ids=["empty", "text", "ppm", "truncated", "72 MP", "100 MP", "182 MP", "progressive", "blank"],
)
def test_what_is_no_readable_picture_is_refused_in_one_line(
    tmp_path: Path, content: bytes, reason: str, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(photographs.ImageError, match=reason) as caught:
        photographs.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not recwarn.list


def test_a_wrong_invert_is_refused_rather_than_classified_as_black() -> None:
    scene = Image.new("L", (100, 100), 255)
    scene.paste(0, (30, 30, 60, 60))
    with pytest.raises(ValueError, match="nothing stands out"):
        conversion.convert(scene, "never")


@pytest.mark.parametrize("name", ["missing.png", "x" * 300, "/dev/null"])
def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    assert photographs.find(tmp_path / name) == ([tmp_path / name], [])
    with pytest.raises(photographs.ImageError, match="cannot read"):
        photographs.read(tmp_path / name)


def test_a_folder_and_its_folders_are_read_in_order_and_the_rest_is_named(tmp_path: Path) -> None:
    images = ["a.jfif", "b.PNG", "c.webp", "deeper/d.avif", "deeper/still/e.gif", "f.png/g.tif"]
    others = [".hidden.png", "cat.heic", "deeper/notes.txt"]
    for name in (*images, *others, ".trash/h.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    found = photographs.find(tmp_path)
    assert found.images == [tmp_path / name for name in images]
    assert found.others == sorted(tmp_path / name for name in (*others, ".trash", "loop"))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    (path,), _ = photographs.find(tmp_path)
    with pytest.raises(photographs.ImageError, match="folder without"):
        photographs.read(path)


@pytest.fixture
def guarded() -> Iterator[Path]:
    """A folder, seen by a user who may not enter `locked` in it, nor list `secret`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.chmod(0o755)
        for name in ("locked", "secret"):
            (path / name).mkdir()
            save(Image.linear_gradient("L"), path / name / "a.png")
        (path / "locked").chmod(0o444)
        (path / "secret").chmod(0o000)
        user = os.geteuid()
        if user == 0:  # who may do everything
            os.seteuid(65534)
        try:
            yield path
        finally:
            os.seteuid(user)
            for name in ("locked", "secret"):
                (path / name).chmod(0o755)


def test_a_folder_that_may_not_be_entered_or_listed_is_one_line(guarded: Path) -> None:
    images, others = photographs.find(guarded)
    assert images == [guarded / "locked" / "a.png", guarded / "secret"]
    assert others == []
    for path in images:
        with pytest.raises(photographs.ImageError, match="Permission denied"):
            photographs.read(path)


@pytest.mark.parametrize("suffix", [".png", ".gif", ".tiff", ".bmp", ".webp"])
def test_a_format_without_losses_gives_the_image_itself(
    dataset: Dataset, tmp_path: Path, suffix: str
) -> None:
    image = dataset.test.images[0]
    options = {"lossless": True} if suffix == ".webp" else {}
    assert torch.equal(
        photographs.read(save(picture(image), tmp_path / f"a{suffix}", **options)).image, image
    )


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".webp"])
def test_a_format_with_losses_gives_nearly_the_image(
    dataset: Dataset, tmp_path: Path, suffix: str
) -> None:
    image = dataset.test.images[0]
    path = save(picture(image).convert("RGB"), tmp_path / f"a{suffix}", quality=95)
    assert photographs.find(tmp_path).images == [path]
    assert (photographs.read(path).image.float() - image.float()).abs().mean() < 5


@pytest.mark.parametrize("dtype", [np.int32, np.float32, ">u2"])
def test_a_deep_tiff_is_scaled_not_clipped(dataset: Dataset, tmp_path: Path, dtype: str) -> None:
    image = dataset.test.images[0]
    deep = (image.squeeze(0).numpy().astype(float) * 257).astype(dtype)
    assert torch.equal(
        photographs.read(save(Image.fromarray(deep), tmp_path / "a.tiff")).image, image
    )


@pytest.mark.parametrize("size", [(8192, 6144), (9248, 6936)])
def test_what_a_telephone_takes_is_read(tmp_path: Path, size: tuple[int, int]) -> None:
    whole = Image.new("L", size, 255)
    whole.paste(0, (2000, 1000, 4000, 5000))
    small = whole.resize((256, 192))
    expected = conversion.convert(small).image
    difference = photographs.read(save(whole, tmp_path / "a.jpg")).image.float() - expected.float()
    assert difference.abs().mean() < 4


def test_damaged_metadata_do_not_matter_where_the_pixels_are_whole(
    dataset: Dataset, tmp_path: Path
) -> None:
    image = dataset.test.images[0]
    path = save(picture(image), tmp_path / "a.png", exif=b"Exif\0\0no TIFF header")
    assert torch.equal(photographs.read(path).image, image)


def test_a_garbled_file_name_is_escaped() -> None:
    assert printable("coat.png") == "coat.png"
    assert printable("mañana.png") == "mañana.png"
    assert printable("a\n\x1b[2J\udcff.png") == r"a\n\x1b[2J\udcff.png"


def test_classes_come_best_first_with_their_probabilities(
    model: nn.Module, dataset: Dataset
) -> None:
    samples = [predict.from_subset(dataset.test, index) for index in (3, 1)]
    answers = predict.classify(model, samples, top=10)
    expected = evaluation.predict(model, dataset.test.images[[3, 1]]).softmax(dim=1)
    for answer, sample, row in zip(answers, samples, expected, strict=True):
        assert answer.sample is sample
        assert answer.classes[0] == FASHION_MNIST.classes[row.argmax()]
        assert sorted(answer.classes) == sorted(FASHION_MNIST.classes)
        assert answer.probabilities == sorted(answer.probabilities, reverse=True)
        assert answer.probabilities[0] == pytest.approx(row.max().item())
        assert sum(answer.probabilities) == pytest.approx(1)


def answer(name: str = "coat.png", true: str | None = None) -> predict.Answer:
    image = torch.arange(784, dtype=torch.int64).remainder(256).to(torch.uint8).view(1, 28, 28)
    sample = predict.Sample(name, image, true)
    return predict.Answer(sample, ["Coat", "Shirt"], [0.75, 0.2])


def test_the_text_fits_80_columns() -> None:
    text = predict.render([answer(f"{'folder/' * 20}coat.png"), answer("test image 9", "Coat")])
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "folder/coat.png\n  75.00%  Coat\n  20.00%  Shirt\n" in text
    assert "test image 9 (true class: Coat)\n" in text


def test_csv_and_json_hold_the_same_answers(tmp_path: Path) -> None:
    answers = [answer("a, b.png"), answer("test image 9", "Bag")]
    predict.write(answers, tmp_path / "answers.csv")
    predict.write(answers, tmp_path / "answers.json")
    table = pd.read_csv(tmp_path / "answers.csv")
    assert table.columns.tolist() == ["image", "true", "rank", "predicted", "probability", "ground"]
    assert table["image"].tolist() == ["a, b.png"] * 2 + ["test image 9"] * 2
    assert table["rank"].tolist() == [1, 2, 1, 2]
    assert table["predicted"].tolist() == ["Coat", "Shirt"] * 2
    assert table["probability"].tolist() == [0.75, 0.2] * 2
    records = json.loads((tmp_path / "answers.json").read_text())
    assert records[0]["true"] is None
    assert records[2]["true"] == "Bag"
    assert [record["probability"] for record in records] == table["probability"].tolist()


def test_a_file_name_is_no_formula_in_a_spreadsheet(tmp_path: Path) -> None:
    predict.write([answer("=1+1.png")], tmp_path / "answers.csv")
    assert pd.read_csv(tmp_path / "answers.csv")["image"].tolist() == ["'=1+1.png"] * 2


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(table: pd.DataFrame, path: Path, **options: object) -> None:
        path.write_text("image,tr")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_csv", full_disk)
    path = tmp_path / "answers.csv"
    path.write_text("before")
    with pytest.raises(FileError, match="No space left"):
        predict.write([answer()], path)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def colours(path: Path) -> set[tuple[int, ...]]:
    with Image.open(path) as figure:
        return {colour for _, colour in figure.convert("RGB").getcolors(2**24)}


GREEN, RED = (0, 122, 90), (192, 57, 43)


def test_the_figure_tells_right_from_wrong_by_colour(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    predict.draw([answer(true="Coat")], path)
    assert GREEN in colours(path)
    assert RED not in colours(path)
    predict.draw([answer(true="Coat"), answer(true="Bag")], path)
    assert {GREEN, RED} <= colours(path)
    predict.draw([answer(r"$\frac$.png"), answer(true="Bag")], path)
    assert not {GREEN, RED} & colours(path)


def test_a_name_in_japanese_is_drawn_without_a_warning(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    predict.draw([answer("コート.png")], tmp_path / "grid.png")
    assert not recwarn.list


class Fixed(nn.Module):
    """A model that returns the same for whatever images."""

    def __init__(self, answer: object, takes: int = 28) -> None:
        super().__init__()
        self.answer, self.takes = answer, takes

    def forward(self, images: Tensor) -> object:
        assert images.shape[-1] == self.takes, "expected 224 pixels\nand more"
        return self.answer


@pytest.mark.parametrize(
    ("foreign", "problem"),
    [
        (Fixed(torch.zeros(2, 2)), "returns shape (2, 2) for two images"),
        (Fixed(torch.zeros(2, 10, 1)), "returns shape (2, 10, 1)"),
        (Fixed(torch.zeros(2, 10, dtype=torch.int64)), "does not return logits"),
        (Fixed({"logits": torch.zeros(2, 10)}), "does not return logits, but a dict"),
        (Fixed(torch.zeros(2, 10), takes=224), "(expected 224 pixels)"),
    ],
)
@pytest.mark.parametrize("arguments", [["predict", "--indices", "0"], ["export"]])
def test_another_kind_of_model_is_one_line_and_writes_nothing(
    run: Callable[..., Result],
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    foreign: nn.Module,
    problem: str,
    arguments: list[str],
) -> None:
    monkeypatch.setattr(models, "load_calibrated", Mock(return_value=(foreign, 1.0, FASHION_MNIST)))
    name, *options = arguments
    entry_point = getattr(import_module(f"entrypoints.{name}"), name)
    result = CliRunner().invoke(entry_point, [*options, "--model-uri", "models:/other/1"])
    assert problem in assert_one_line(result)
    assert "models:/other/1" in result.stderr
    assert not Path("models").exists()


def test_the_figure_of_many_images_stays_drawable(tmp_path: Path) -> None:
    path = tmp_path / "grid.png"
    predict.draw([answer(true="Coat")] * 70, path)
    with Image.open(path) as figure:
        assert figure.width == 900
        assert figure.height < 7_000


def test_image_files_are_classified_like_the_test_images_they_are(
    train_small: Callable[..., str], dataset: Dataset, store: Path
) -> None:
    """With a model out of the store: nothing of the command is replaced."""
    uri = models.model_uri(mlflow.get_run(train_small("cnn")))
    (store / "saved").mkdir()
    for index in range(20):
        save(picture(dataset.test.images[index]), store / "saved" / f"{index:02}.png")
    asked = ["--images", "saved", "--indices", "0,1-18,19", "--top", "10"]
    result = CliRunner().invoke(command, [*asked, "--model-uri", uri, "--output", "out.csv"])
    assert result.exit_code == 0, result.output
    table = pd.read_csv("out.csv")
    files, indices = table[:200], table[200:].reset_index()
    assert files["image"][0] == "saved/00.png"
    assert indices["image"][0] == "test image 0"
    assert indices["true"][0] == "Ankle boot"
    right = (indices["predicted"] == indices["true"])[indices["rank"] == 1].sum()
    assert result.stdout.startswith("40 images: ")
    assert f"\n{right} of 20 images right: {right / 20:.2%}\n" in result.stdout
    pd.testing.assert_series_equal(files["predicted"], indices["predicted"])
    pd.testing.assert_series_equal(files["probability"], indices["probability"])


def test_photographs_are_mostly_classified_like_the_test_images_they_show(
    run: Callable[..., Result], dataset: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    for index in range(100):
        photo = photograph(dataset.test.images[index], ground=235)
        save(photo, tmp_path / "photos" / f"{index:02}.jpg", quality=85)
    result = run("--images", "photos", "--indices", "0-99", "--top", 1, "--output", "out.csv")
    assert result.exit_code == 0, result.output
    predicted = pd.read_csv("out.csv")["predicted"].to_numpy()
    assert (predicted[:100] == predicted[100:]).mean() > 0.8


def test_unreadable_files_are_named_skipped_and_counted(
    run: Callable[..., Result], dataset: Dataset, tmp_path: Path
) -> None:
    save(picture(dataset.test.images[1]), tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    (tmp_path / "notes.txt").touch()
    result = run("--images", ".", "--images", "missing.png", "--output", "out.json")
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert result.stderr.splitlines() == [
        "cannot read bad.png: not an image in one of the formats PNG, JPEG, GIF, TIFF, BMP, WEBP,"
        " AVIF",
        "passed over, as the names are no images': 1 (notes.txt)",
        "cannot read missing.png: No such file or directory",
        f"Wrote {tmp_path / 'out.json'}",
        "Error: unreadable files skipped: 2",
    ]
    assert re.fullmatch("1 image: 1 [A-Z].*\n", result.stdout)
    assert len(json.loads((tmp_path / "out.json").read_text())) == 3


def test_test_images_show_their_true_class(run: Callable[..., Result], tmp_path: Path) -> None:
    result = run("--indices", "0, 9998-9999", "--figure", "grid.png")
    assert result.exit_code == 0, result.output
    assert "test image 0 (true class: Ankle boot)" in result.stdout
    assert "test image 9999 (true class: Sandal)" in result.stdout
    with Image.open(tmp_path / "grid.png") as figure:
        assert figure.width == 900


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --images, --indices, or both"),
        (["--images", "", "--indices", ""], "Give --images, --indices, or both"),
        (["--indices", "10000"], "within 0 to 9999"),
        (["--indices", "0-999999999"], "is more than 1,000,000 images"),
        (["--indices", "14-10"], "in ascending order"),
        (["--indices", "-1"], "neither an index nor a range"),
        (["--indices", "1e3"], "neither an index nor a range"),
        (["--indices", "0", "--top", "0"], "x>=1"),
        (["--indices", "0", "--output", "answers.txt"], "does not end in .csv or .json"),
        (
            ["--indices", "0", "--output", "nowhere/answers.csv"],
            "the folder nowhere does not exist",
        ),
        (["--indices", "0", "--figure", "grid.jpg"], "does not end in .png"),
        (["--indices", "0", "--invert", "maybe"], "'maybe' is not one of"),
    ],
)
def test_mistyped_options_are_refused_before_a_model_is_loaded(
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    load = Mock()
    monkeypatch.setattr(models, "load_calibrated", load)
    result = run(*arguments)
    load.assert_not_called()
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_model_that_does_not_exist_is_one_line(store: Path) -> None:
    result = CliRunner().invoke(command, ["--indices", "0"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: models:/fashion-mnist-cnn@champion does not exist")
    assert "register a model first" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_help_imports_neither_torch_nor_mlflow_and_the_library_no_mlflow() -> None:
    program = """
import sys
from click.testing import CliRunner
from entrypoints.predict import predict
assert CliRunner().invoke(predict, ["--help"]).exit_code == 0
assert not {"torch", "mlflow"} & set(sys.modules)
import fashion.inference.photographs, fashion.inference.predict
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=HANG_SECONDS)
