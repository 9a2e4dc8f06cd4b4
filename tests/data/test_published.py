"""torchvision's sets are downloaded, here from this machine, and read."""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from fashion.data import published
from fashion.data.sources import load_dataset
from fashion.errors import DataError, SettingError
from fashion.files import INCOMING
from tests.pictures import noise

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address under which it is served."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def images(count: int) -> np.ndarray:
    return noise(count, count, 28 * 28, 1).reshape(count, 28, 28)


def idx(values: np.ndarray) -> bytes:
    """Return an array in the format of MNIST's files."""
    kind = {"uint8": 8, "int32": 12}[values.dtype.name]
    header = struct.pack(f">{values.ndim + 1}I", kind * 256 + values.ndim, *values.shape)
    return header + values.astype(values.dtype.newbyteorder(">")).tobytes()


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def serve_mnist(mirror: tuple[Path, str], kind: type, patch: pytest.MonkeyPatch) -> None:
    resources = []
    for part, count in (("train", 20), ("t10k", 10)):
        labels = np.arange(count, dtype=np.uint8) % 10
        for name, values in (("images-idx3", images(count)), ("labels-idx1", labels)):
            content = gzip.compress(idx(values), mtime=0)
            (mirror[0] / f"{part}-{name}-ubyte.gz").write_bytes(content)
            resources.append((f"{part}-{name}-ubyte.gz", md5(content)))
    patch.setattr(kind, "mirrors", [mirror[1]])
    patch.setattr(kind, "resources", resources)


@pytest.mark.parametrize("name", ["mnist", "kmnist"])
def test_mnist_and_kmnist(
    name: str,
    mirror: tuple[Path, str],
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    kind = getattr(datasets, name.upper())
    serve_mnist(mirror, kind, monkeypatch)
    loaded = load_dataset(data_dir, name)
    assert loaded.task.name == name
    assert loaded.task.classes == tuple(kind.classes)
    assert loaded.task.shape == (1, 28, 28)
    assert loaded.task.extract
    assert loaded.train.images[:, 0].numpy().tolist() == images(20).tolist()
    assert loaded.test.labels.tolist() == list(range(10))
    values = loaded.train.images.double() / 255
    assert loaded.task.mean == pytest.approx([values.mean().item()], abs=1e-6)
    assert loaded.task.std == pytest.approx([values.std(unbiased=False).item()], abs=1e-6)
    assert f"Downloading {kind.__name__}" in capfd.readouterr().err
    # Downloaded once, whole, and nothing else is left.
    monkeypatch.setattr(kind, "mirrors", ["http://127.0.0.1:9/"])
    assert load_dataset(data_dir, name).train.digest == loaded.train.digest
    assert [path.name for path in data_dir.iterdir()] == [kind.__name__]
    assert len(list(data_dir.rglob("*-ubyte"))) == len(
        list((data_dir / kind.__name__ / "raw").iterdir())
    )


def test_qmnist_has_a_row_of_facts_for_each_label(
    mirror: tuple[Path, str], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources: dict[str, list[tuple[str, str]]] = {}
    for part, count in (("train", 20), ("test", 10)):
        labels = np.stack([np.arange(count) % 10] + [np.full(count, 99)] * 7, axis=1)
        for name, values in (
            ("images-idx3-ubyte", images(count)),
            ("labels-idx2-int", labels.astype(np.int32)),
        ):
            content = gzip.compress(idx(values), mtime=0)
            (mirror[0] / f"qmnist-{part}-{name}.gz").write_bytes(content)
            entry = (f"{mirror[1]}qmnist-{part}-{name}.gz", md5(content))
            resources.setdefault(part, []).append(entry)
    monkeypatch.setattr(datasets.QMNIST, "resources", resources)
    loaded = load_dataset(data_dir, "qmnist")
    assert loaded.train.labels.tolist() == [*range(10), *range(10)]
    assert len(loaded.test) == 10


def test_emnists_letters_are_upright_and_begin_at_0(
    mirror: tuple[Path, str], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for part, count in (("train", 52), ("test", 26)):
            labels = (1 + np.arange(count) % 26).astype(np.uint8)
            for name, values in (("images-idx3", images(count)), ("labels-idx1", labels)):
                path = f"gzip/emnist-letters-{part}-{name}-ubyte.gz"
                archive.writestr(path, gzip.compress(idx(values)))
    (mirror[0] / "gzip.zip").write_bytes(packed.getvalue())
    monkeypatch.setattr(datasets.EMNIST, "url", f"{mirror[1]}gzip.zip")
    monkeypatch.setattr(datasets.EMNIST, "md5", md5(packed.getvalue()))
    loaded = load_dataset(data_dir, "emnist:letters")
    assert loaded.task.classes == tuple("abcdefghijklmnopqrstuvwxyz")
    assert loaded.task.name == "emnist-letters"
    assert loaded.test.labels.tolist() == list(range(26))
    assert (loaded.train.images[3, 0].T.numpy() == images(52)[3]).all()


def test_cifar10_has_three_colours_and_photographs(
    mirror: tuple[Path, str], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = [f"class {number}" for number in range(10)]
    contents = {"batches.meta": {"label_names": classes}}
    for number, name in enumerate(("data_batch_1", "test_batch")):
        pixels = noise(number, 10, 3 * 32 * 32, 1)
        contents[name] = {"data": pixels, "labels": list(range(10))}
    packed = io.BytesIO()
    sums = {}
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in contents.items():
            written = pickle.dumps(content)
            sums[name] = md5(written)
            entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            entry.size = len(written)
            archive.addfile(entry, io.BytesIO(written))
    (mirror[0] / "cifar.tar.gz").write_bytes(packed.getvalue())
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "url", f"{mirror[1]}cifar.tar.gz")
    monkeypatch.setattr(kind, "tgz_md5", md5(packed.getvalue()))
    monkeypatch.setattr(kind, "train_list", [["data_batch_1", sums["data_batch_1"]]])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums["batches.meta"]})
    loaded = load_dataset(data_dir, "cifar10")
    assert loaded.task.classes == tuple(classes)
    assert loaded.task.shape == (3, 32, 32)
    assert not loaded.task.extract
    assert loaded.test.images.flatten(1).numpy().tolist() == noise(1, 10, 3 * 32 * 32, 1).tolist()


def test_a_failed_download_is_one_line_and_leaves_nothing(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(DataError, match=r"MNIST is not in .* could not be downloaded") as caught:
        load_dataset(data_dir, "mnist")
    assert str(caught.value).isprintable()
    assert list(data_dir.iterdir()) == []


def test_damaged_files_are_one_line(
    mirror: tuple[Path, str], data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_mnist(mirror, datasets.MNIST, monkeypatch)
    load_dataset(data_dir, "mnist")
    assert not list(data_dir.glob(f"{INCOMING}*"))
    (path,) = data_dir.rglob("train-labels-idx1-ubyte")
    for content in (b"", path.read_bytes()[:-3], path.read_bytes()[:-1] + b"\xff"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read MNIST .* delete its folder") as caught:
            load_dataset(data_dir, "mnist")
        assert str(caught.value).isprintable()


def test_without_a_chosen_directory_the_cache_is_used(
    tmp_path: Path, mirror: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_mnist(mirror, datasets.MNIST, monkeypatch)
    load_dataset(data="mnist")
    assert (tmp_path / "cache" / "fashion-mnist" / "MNIST" / "raw").is_dir()


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="typo does not exist"):
        load_dataset(tmp_path / "typo", "mnist")


@pytest.mark.parametrize("name", published.SETS)
def test_published_images_have_the_size_they_have(name: str) -> None:
    with pytest.raises(SettingError, match=f"image_size: the images of {name} are of"):
        load_dataset(data=name, image_size=64)
