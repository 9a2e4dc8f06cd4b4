"""Whatever comes in, the answer is a result or one line that says what is wrong."""

import gzip
import io
import os
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from entrypoints.predict import predict as predict_command
from fashion.data import sources
from fashion.data.dataset import Dataset
from fashion.data.download import FILES, read
from fashion.data.sources import load_dataset
from fashion.errors import DataError, FashionError, printable
from fashion.inference import photographs
from fashion.inference.photographs import ImageError
from fashion.models import adapted, catalogue
from fashion.portable import conversion
from fashion.settings.experiment import Architecture
from fashion.sweeps import plan
from fashion.tracking import models
from fashion.tracking.models import RegistryError
from tests.conftest import HANG_SECONDS, assert_one_line
from tests.processes import growth_of_the_peak

# The same examples on every machine; a fixture serves all of a test's examples.
bounded = settings(
    derandomize=True,
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LABELS = "train-labels-idx1-ubyte"


@pytest.fixture(scope="module")
def plain(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four files, decompressed."""
    directory = tmp_path_factory.mktemp("plain")
    for name in FILES:
        (directory / name).write_bytes(read(dataset.directory, name))
    return directory


@pytest.fixture
def with_labels(plain: Path) -> Iterator[Callable[[bytes, str], Path]]:
    """Return a function that makes a data directory with this content for the training labels."""
    with tempfile.TemporaryDirectory() as folder:

        def make(content: bytes, suffix: str) -> Path:
            directory = Path(tempfile.mkdtemp(dir=folder))
            for name in FILES.keys() - {LABELS}:
                (directory / name).symlink_to(plain / name)
            (directory / f"{LABELS}{suffix}").write_bytes(content)
            return directory

        yield make


def attempt(call: Callable[[], Any]) -> tuple[Any, str | None]:
    """Return what the call returns, or the one line that it refuses by."""
    try:
        return call(), None
    except FashionError as error:
        refusal = str(error)
    assert len(refusal.splitlines()) == 1
    return None, refusal


# What may happen to a file: a byte changed, cut off, or something added.
damages = st.one_of(
    st.tuples(st.just("flip"), st.integers(0), st.integers(1, 255)),
    st.tuples(st.just("cut"), st.integers(0), st.just(0)),
    st.tuples(st.just("add"), st.binary(min_size=1, max_size=50), st.just(0)),
    st.tuples(st.just("replace"), st.binary(max_size=200), st.just(0)),
)


def damaged(content: bytes, damage: tuple) -> bytes:
    kind, where, bits = damage
    if kind == "add":
        return content + where
    if kind == "replace":
        return where
    position = where % len(content)
    if kind == "cut":
        return content[:position]
    return content[:position] + bytes([content[position] ^ bits]) + content[position + 1 :]


@settings(bounded, max_examples=20)
@example(("flip", 2, 8), False)  # the magic number: another type
@example(("flip", 3, 2), False)  # another number of dimensions
@example(("flip", 7, 1), False)  # a wrong count
@example(("flip", 4, 255), True)
@example(("flip", 8, 255), False)  # a label out of range
@example(("cut", 8, 0), False)
@given(damages, st.booleans())
def test_a_damaged_dataset_is_never_read(
    plain: Path, with_labels: Callable[[bytes, str], Path], damage: tuple, zipped: bool
) -> None:
    content = (plain / LABELS).read_bytes()
    suffix = ".gz" if zipped else ""
    stored = gzip.compress(content, 1, mtime=0) if zipped else content
    directory = with_labels(damaged(stored, damage), suffix)
    read, refusal = attempt(lambda: load_dataset(directory))
    if refusal:
        assert LABELS in refusal
    else:
        # gzip's header has bits that change nothing.
        assert zipped
        assert read.train.labels.bincount().tolist() == [6000] * 10


def test_a_bomb_is_not_unpacked(with_labels: Callable[[bytes, str], Path]) -> None:
    member = gzip.compress(bytes(2**24))
    directory = with_labels(member * 32, ".gz")
    assert growth_of_the_peak(load_dataset, str(directory)) < 250


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(width: int, height: int, *extra: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """A PNG file that claims a size and is black as far as it goes."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100_000)))
    body = chunk(b"IHDR", header) + b"".join(extra) + pixels + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_of(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (16, 16)).save(content, "JPEG")
    return content.getvalue().replace(
        struct.pack(">HH", 16, 16), struct.pack(">HH", height, width), 1
    )


def webp_of(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (16, 16)).save(content, "WEBP")
    claimed = b"\x9d\x01\x2a" + struct.pack("<HH", width, height)
    return content.getvalue().replace(b"\x9d\x01\x2a" + struct.pack("<HH", 16, 16), claimed)


@pytest.mark.parametrize(
    "content",
    [
        png(2**31 - 1, 2**31 - 1),
        png(2**31 - 1, 1),
        png(7_000, 7_000),
        png(7_000, 7_000, depth=16, colour=6),
        png(28, 28, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**28), 9))),
        png(28, 28, chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**28), 9))),
        jpeg_of(65_500, 65_500),
        jpeg_of(7_000, 7_000),
        webp_of(16_383, 16_383),
        webp_of(6_000, 6_000),
    ],
    ids=[
        *("exapixels", "a line", "49 MP", "64 bits", "text", "profile", "jpeg", "49 MP jpeg"),
        *("webp", "36 MP webp"),
    ],
)
def test_memory_is_bounded_whatever_an_image_claims(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "claims.png"
    path.write_bytes(content)
    assert growth_of_the_peak(photographs.read, path) < 700


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr", "HSV"]


def pictures() -> dict[str, bytes]:
    """Real pictures in what modes and formats there are."""
    gradient = Image.linear_gradient("L").resize((40, 30))
    in_modes = {mode: gradient.convert("LA").convert(mode) for mode in MODES if mode != "I;16"}
    in_modes["I;16"] = Image.fromarray(np.asarray(gradient).astype(np.uint16) * 257)
    found = {}
    for mode, picture in in_modes.items():
        for kind in conversion.IMAGE_FORMATS:
            content = io.BytesIO()
            if mode == "I;16" and kind not in ("PNG", "TIFF"):
                continue  # Pillow would clip it to white
            with suppress(OSError, ValueError):  # Pillow writes no such file
                picture.save(content, kind)
                found[f"{mode} {kind}"] = content.getvalue()
    for kind in ("GIF", "PNG", "WEBP"):
        content = io.BytesIO()
        gradient.save(content, kind, save_all=True, append_images=[gradient.rotate(90)] * 3)
        found[f"animated {kind}"] = content.getvalue()
    return found


PICTURES = pictures()


def read_or_refuse(content: bytes, invert: str = "auto") -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.png")
        path.write_bytes(content)
        image, refusal = attempt(lambda: photographs.read(path, invert).image)
    if refusal:
        assert refusal.isprintable()
        return False
    assert image.shape == (1, 28, 28)
    assert image.dtype == torch.uint8
    return True


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_is_read(name: str) -> None:
    assert read_or_refuse(PICTURES[name])


@settings(bounded, max_examples=300)
@given(st.sampled_from(sorted(PICTURES)), damages, st.sampled_from(["auto", "always", "never"]))
def test_a_damaged_picture_is_read_or_refused(name: str, damage: tuple, invert: str) -> None:
    read_or_refuse(damaged(PICTURES[name], damage), invert)


@bounded
@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 255))
def test_pictures_of_any_shape_are_read_or_refused(width: int, height: int, grey: int) -> None:
    picture = Image.new("L", (width, height), grey)
    picture.paste(255 - grey, (width // 3, height // 3, width // 2 + 1, height // 2 + 1))
    content = io.BytesIO()
    picture.save(content, "PNG")
    read_or_refuse(content.getvalue())


# What a file name or an argument may hold: anything but NUL, bytes that are no UTF-8 among it.
texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=["Cs"]),
    max_size=60,
)


@bounded
@example("../../etc/passwd")
@example("a\nError: b")
@example("\x1b[31mred")
@example("-rf")
@example("\u202egnp.exe")
@given(texts)
def test_a_name_is_never_more_than_text(name: str) -> None:
    assert printable(name).isprintable()
    with tempfile.TemporaryDirectory() as folder, pytest.raises(ImageError) as caught:
        photographs.read(Path(folder, "no", name))
    assert str(caught.value).isprintable()


COMMANDS = ("train", "main", "compare", "register", "predict", "explore", "export", "sweep")


def options() -> list[tuple[str, str]]:
    return [
        (name, option.opts[0])
        for name in COMMANDS
        for option in getattr(import_module(f"entrypoints.{name}"), name).params
        # compare --log is there to open a run.
        if isinstance(option, click.Option) and option.name != "log"
    ]


values = st.one_of(
    texts,
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "-", "--", "1e999", "nan", "-0", "0x10", "1_000", "٣", "true", "/", ".."]),
)


@pytest.fixture
def outcome(store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs a command up to where it would read the dataset."""

    def stop(*_: object) -> None:
        raise DataError("read the dataset")

    monkeypatch.setattr(sources, "load_dataset", stop)

    def run(name: str, *arguments: str) -> Result:
        command = getattr(import_module(f"entrypoints.{name}"), name)
        return CliRunner().invoke(command, arguments)

    return run


@settings(bounded, max_examples=400)
@given(st.sampled_from(options()), values)
def test_any_value_of_any_option_is_taken_or_refused(
    outcome: Callable[..., Result], option: tuple[str, str], value: str
) -> None:
    command, name = option
    result = outcome(command, f"{name}={value}")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, 1, 2)
    if result.exit_code:
        assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert mlflow.search_runs(output_format="list") == []


@bounded
@example("!!python/object/apply:os.system ['true']")
@example("&a [*a, *a]")
@example("a: &a [1]\nb: *a")
@given(texts)
def test_any_search_space_is_read_or_refused(text: str) -> None:
    attempt(lambda: plan.parse(text, "here"))


class Evil:
    """Runs code where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


class EvilModel(torch.nn.Module):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.evil = Evil(path)


def test_a_pickled_model_is_not_loaded(store: Path, tmp_path: Path) -> None:
    with mlflow.start_run():
        uri = mlflow.pytorch.log_model(
            EvilModel(tmp_path / "evil"),
            name="model",
            serialization_format="pickle",
            pip_requirements=["torch"],
        ).model_uri
    assert not (tmp_path / "evil").exists()
    with pytest.raises(RegistryError, match="unpickling"):
        models.load(uri)
    for command in ("predict", "explore", "export", "evaluate"):
        arguments = ["--model-uri", uri, *(["--indices", "0"] if command == "predict" else [])]
        entry_point = getattr(import_module(f"entrypoints.{command}"), command)
        assert "unpickling" in assert_one_line(CliRunner().invoke(entry_point, arguments))
    assert not (tmp_path / "evil").exists()


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    torch.save({"weight": Evil(tmp_path / "evil")}, tmp_path / "weights.pth")
    with pytest.raises(adapted.ModelError, match=r"weights\.pth"):
        catalogue.build(
            "torchvision:resnet18", 0, Architecture(pretrained=str(tmp_path / "weights.pth"))
        )
    assert not (tmp_path / "evil").exists()


def test_an_output_that_is_a_pipe_is_written_to_and_stays(
    store: Path, train_small: Callable[..., str], tmp_path: Path
) -> None:
    uri = models.model_uri(mlflow.get_run(train_small()))
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    arguments = ["--model-uri", uri, "--indices", "0-2", "--output", str(pipe)]
    result = CliRunner().invoke(predict_command, arguments)
    output, _ = reader.communicate(timeout=HANG_SECONDS)
    assert result.exit_code == 0, result.output
    assert output.startswith("image,true,rank")
    assert pipe.is_fifo()
