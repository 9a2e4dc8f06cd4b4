"""The dataset is found, verified, cached without races, and split."""

import gzip
import multiprocessing
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from fashion.data import download
from fashion.data.dataset import Dataset, to_float
from fashion.data.download import FILES, _path, locate, read
from fashion.data.sources import load_dataset
from fashion.errors import DataError


@pytest.fixture
def files(dataset: Dataset, tmp_path: Path) -> Path:
    """A directory of one's own with the four files, uncompressed."""
    directory = tmp_path / "data"
    directory.mkdir()
    for name in FILES:
        source = _path(dataset.directory, name)
        assert source is not None
        if source.suffix == ".gz":
            (directory / name).write_bytes(gzip.decompress(source.read_bytes()))
        else:
            shutil.copy(source, directory / name)
    return directory


def test_shapes_types_and_class_balance(dataset: Dataset) -> None:
    assert dataset.train.images.shape == (60_000, 1, 28, 28)
    assert dataset.test.images.shape == (10_000, 1, 28, 28)
    assert dataset.train.images.dtype == torch.uint8
    assert dataset.train.labels.dtype == torch.int64
    assert dataset.train.labels.bincount().tolist() == [6_000] * 10
    assert dataset.test.labels.bincount().tolist() == [1_000] * 10


def test_pixels_are_those_of_the_published_dataset(dataset: Dataset) -> None:
    pixels = to_float(dataset.train.images).double()
    assert pixels.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3530, abs=5e-5)


def test_scaling_is_that_of_to_tensor(dataset: Dataset) -> None:
    from torchvision.transforms import ToTensor

    images = dataset.test.images[:50]
    expected = torch.stack([ToTensor()(image[0].numpy()) for image in images])
    assert torch.equal(to_float(images), expected)


def test_gzipped_files_are_read_too(files: Path, dataset: Dataset) -> None:
    for name in FILES:
        path = files / name
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes(), compresslevel=1))
        path.unlink()
    assert torch.equal(load_dataset(files).test.images, dataset.test.images)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[5_000] ^= 1
    path.write_bytes(content)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _append, _flip_a_bit, _empty])
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])
def test_a_damaged_file_is_named_and_refused(files: Path, damage, name: str) -> None:
    damage(files / name)
    with pytest.raises(DataError, match=name) as caught:
        load_dataset(files)
    assert "\n" not in str(caught.value)


def test_files_mixed_up_are_refused(files: Path) -> None:
    train, test = files / "train-labels-idx1-ubyte", files / "t10k-labels-idx1-ubyte"
    shutil.copy(test, train)
    with pytest.raises(DataError, match="train-labels"):
        load_dataset(files)


@pytest.mark.parametrize(
    "content", [gzip.compress(b"x" * 1000, mtime=0)[:-9], b"no gzip at all", b"\x1f\x8b"]
)
def test_a_damaged_gzip_file_is_named_and_refused(files: Path, content: bytes) -> None:
    name = "t10k-labels-idx1-ubyte"
    (files / name).unlink()
    (files / f"{name}.gz").write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.gz"):
        load_dataset(files)


def test_a_gzip_bomb_is_refused_without_being_unpacked(files: Path) -> None:
    import tracemalloc

    name = "t10k-labels-idx1-ubyte"
    (files / name).unlink()
    with gzip.open(files / f"{name}.gz", "wb") as bomb:
        for _ in range(256):
            bomb.write(b"\0" * 2**20)
    tracemalloc.start()
    with pytest.raises(DataError, match=name):
        read(files, name)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * 2**20


def test_missing_files_are_put_into_the_chosen_directory(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "DEBIAN_DIR", files)
    target = tmp_path / "chosen"
    target.mkdir()
    load_dataset(target)
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)


def test_sources_are_tried_in_order(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "xdg" / "fashion-mnist"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(download, "DEBIAN_DIR", files)
    monkeypatch.delenv("FASHION_DATA_DIR", raising=False)
    assert locate() == files
    shutil.copytree(files, cache)
    assert locate() == cache
    monkeypatch.setenv("FASHION_DATA_DIR", str(tmp_path / "env"))
    shutil.copytree(files, tmp_path / "env")
    assert locate() == tmp_path / "env"
    assert locate(files) == files


def test_torchvisions_download_fills_the_directory_and_shows_progress(
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from torchvision.datasets import FashionMNIST as TorchvisionFashionMNIST

    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name in FILES:
        content = gzip.compress((files / name).read_bytes(), compresslevel=1)
        (mirror / f"{name}.gz").write_bytes(content)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(mirror))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        monkeypatch.setattr(download, "DEBIAN_DIR", tmp_path / "nowhere")
        monkeypatch.setattr(
            TorchvisionFashionMNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"]
        )
        # torchvision checks the MD5 of the published gz files; these were compressed anew.
        monkeypatch.setattr(
            TorchvisionFashionMNIST, "resources", [(f"{name}.gz", None) for name in FILES]
        )
        (tmp_path / "target").mkdir()
        loaded = load_dataset(tmp_path / "target")
    finally:
        server.shutdown()
        server.server_close()
    assert len(loaded.train) == 60_000
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == sorted(FILES)
    assert "100%" in capfd.readouterr().err


def test_without_any_source_the_error_names_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import FashionMNIST as TorchvisionFashionMNIST

    monkeypatch.setattr(download, "DEBIAN_DIR", tmp_path / "nowhere")
    monkeypatch.setattr(TorchvisionFashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("PATH", "")
    (tmp_path / "target").mkdir()
    with pytest.raises(DataError, match=r"apt-get.*--data-dir") as caught:
        load_dataset(tmp_path / "target")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "target").iterdir()) == []


def test_a_mistyped_directory_is_named_and_not_made(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "DEBIAN_DIR", files)
    with pytest.raises(DataError, match=f"{tmp_path}/typo does not exist"):
        load_dataset(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def _fill_and_count(debian_dir: Path, target: Path, barrier) -> None:
    download.DEBIAN_DIR = debian_dir
    barrier.wait()
    assert len(load_dataset(target).train) == 60_000


def test_two_processes_filling_one_cache_both_succeed(files: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(2)
    target = tmp_path / "cache"
    target.mkdir()
    processes = [
        context.Process(target=_fill_and_count, args=(files, target, barrier)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(path.name for path in target.iterdir()) == sorted(FILES)


def test_the_split_is_stratified_disjoint_and_always_the_same(dataset: Dataset) -> None:
    training, validation = dataset.split(5_000)
    again, _ = dataset.split(5_000)
    assert validation is not None
    assert training.labels.bincount().tolist() == [5_500] * 10
    assert validation.labels.bincount().tolist() == [500] * 10
    assert torch.equal(training.images, again.images)
    # Another split would make runs of today incomparable with those of before.
    assert validation.labels[:12].tolist() == [0, 2, 4, 5, 7, 6, 7, 8, 7, 5, 7, 8]
    assert validation.images[:12].long().sum().item() == 669_922
    whole = torch.cat([training.images, validation.images]).flatten(1)
    expected = dataset.train.images.flatten(1)
    # The same images, each once, whatever the order.
    assert torch.equal(_sorted_checksums(whole), _sorted_checksums(expected))


def _sorted_checksums(rows: torch.Tensor) -> torch.Tensor:
    weights = torch.arange(1, 785, dtype=torch.int64) ** 3
    return (rows.long() * weights).sum(dim=1).sort().values


def test_no_validation_set_leaves_the_training_set_whole(dataset: Dataset) -> None:
    training, validation = dataset.split(0)
    assert training is dataset.train
    assert validation is None


@pytest.mark.parametrize("val_size", [-1, 9, 59_991, 60_000])
def test_a_split_that_cannot_be_stratified_is_refused(dataset: Dataset, val_size: int) -> None:
    with pytest.raises(ValueError, match=str(val_size)):
        dataset.split(val_size)


def test_digests_name_the_images_and_the_split(dataset: Dataset) -> None:
    subsets = [dataset.train, dataset.test, *dataset.split(5_000), *dataset.split(1_000)]
    digests = [subset.digest for subset in subsets if subset is not None]
    assert len(set(digests)) == 6
    assert {len(digest) for digest in digests} == {32}
    assert dataset.split(5_000)[0].digest == digests[2]
