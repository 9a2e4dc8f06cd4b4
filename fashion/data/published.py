"""Load the published sets that torchvision downloads and that are like Fashion-MNIST in kind."""

import hashlib
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fashion.data.dataset import Dataset, Subset, digest_of
from fashion.data.download import directory_of
from fashion.errors import DataError, printable
from fashion.files import INCOMING, cache_dir
from fashion.settings.task import Task

EMNIST_SPLITS = ("balanced", "byclass", "bymerge", "digits", "letters", "mnist")


class Published(NamedTuple):
    """A set of torchvision's.

    Attributes:
        title: what people call it; without punctuation, the name of torchvision's class.
        shape: channels, height and width of an image.
        split: which part of it; empty if there is one.
    """

    title: str
    shape: tuple[int, int, int] = (1, 28, 28)
    split: str = ""


SETS = {
    "mnist": Published("MNIST"),
    "kmnist": Published("KMNIST"),
    "qmnist": Published("QMNIST"),
    **{f"emnist:{split}": Published("EMNIST", split=split) for split in EMNIST_SPLITS},
    "cifar10": Published("CIFAR-10", (3, 32, 32)),
}


def load(name: str, data_dir: str | Path | None = None) -> Dataset:
    """Read one of `SETS`; download it if this machine does not have it.

    The directory is `data_dir`, else the environment variable FASHION_DATA_DIR, else the cache. A
    set is in a folder of it, in torchvision's layout. Of QMNIST the test set has 60,000 images. The
    letters of EMNIST, which are stored on their side, are turned upright.

    Raises:
        DataError: the download failed, or the files are damaged or cannot be read or written.
    """
    # Imported here because it takes seconds.
    from torchvision import datasets

    published = SETS[name]
    kind = getattr(datasets, published.title.replace("-", ""))
    options = {"split": published.split} if published.split else {}
    directory = directory_of(data_dir) or cache_dir()
    try:
        try:
            parts = _read(kind, directory, options)
        except RuntimeError as error:
            if "Dataset not found" not in str(error):
                raise
            _download(kind, directory, options, published.title)
            parts = _read(kind, directory, options)
        return _dataset(name, published, *parts, directory)
    except DataError:
        raise
    except Exception as error:  # torchvision checks no more than its own assertions do
        reason = (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
        raise DataError(
            f"cannot read {published.title} in {printable(str(directory))}"
            f" ({reason.splitlines()[0]}): delete its folder there to download it again"
        ) from error


def _read(kind: type, directory: Path, options: dict[str, Any]) -> tuple[Any, Any]:
    return tuple(kind(directory, train=train, **options) for train in (True, False))


def _download(kind: type, directory: Path, options: dict[str, Any], title: str) -> None:
    """Add the files to the directory, each as a whole, so that no process reads a part of one."""
    print(f"Downloading {title} with torchvision", file=sys.stderr)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=INCOMING) as incoming:
            for train in (True, False):
                kind(incoming, train=train, download=True, **options)
            for folder, _, files in os.walk(incoming):
                target = directory / Path(folder).relative_to(incoming)
                target.mkdir(exist_ok=True)
                for each in files:
                    if not each.endswith((".gz", ".zip")):
                        Path(folder, each).replace(target / each)
    except (OSError, RuntimeError) as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        raise DataError(
            f"{title} is not in {printable(str(directory))} and could not be downloaded"
            f" ({reason[-1]}): check the network, or pass a directory that has it as --data-dir"
        ) from error


def _dataset(name: str, published: Published, train: Any, test: Any, directory: Path) -> Dataset:
    classes = tuple(each for each in train.classes if each != "N/A")
    task = Task(
        name.replace(":", "-"),
        f"{published.title} {published.split}".strip(),
        classes,
        published.shape,
        # Glyphs are light on black, as garments are.
        extract=published.shape[0] == 1,
    )
    pixels = _pixels(train, published)
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in range(task.channels):
        counts = pixels[:, channel].flatten().bincount(minlength=256).double()
        mean.append((counts @ levels / counts.sum()).item())
        std.append((counts @ (levels - mean[-1]).square() / counts.sum()).sqrt().item())
    task = replace(
        task,
        mean=tuple(round(each, 6) for each in mean),
        std=tuple(round(each, 6) for each in std),
    )
    return Dataset(
        _subset(task, "train", pixels, _labels(train, classes), directory),
        _subset(task, "test", _pixels(test, published), _labels(test, classes), directory),
        directory,
    )


def _pixels(data: Any, published: Published) -> Tensor:
    """Return the images: uint8, shape (N, channels, height, width)."""
    pixels = torch.as_tensor(data.data)
    if published.shape[0] == 3:
        pixels = pixels.permute(0, 3, 1, 2)
    else:
        pixels = (pixels.transpose(1, 2) if published.title == "EMNIST" else pixels).unsqueeze(1)
    if pixels.shape[1:] != published.shape or not len(pixels):
        raise ValueError(f"images of shape {tuple(pixels.shape)}")
    return pixels.contiguous()


def _labels(data: Any, classes: tuple[str, ...]) -> Tensor:
    """Return the labels: int64, shape (N,)."""
    labels = torch.as_tensor(data.targets)
    if labels.ndim == 2:  # QMNIST: the class, and who wrote it where
        labels = labels[:, 0]
    labels = labels.long() - (len(data.classes) - len(classes))  # EMNIST's letters begin at 1
    if len(labels) != len(data.data) or not 0 <= labels.min() <= labels.max() < len(classes):
        raise ValueError("its labels do not fit")
    return labels


def _subset(task: Task, part: str, pixels: Tensor, labels: Tensor, directory: Path) -> Subset:
    hashes = [hashlib.sha256(each.numpy().data).hexdigest() for each in (pixels, labels)]
    digest = digest_of(task.size, *hashes)
    name = f"{task.name}-{part}"
    return Subset(name, pixels, labels, digest, task, source=printable(str(directory)))
