"""Read labelled pictures: a folder with one folder for each class, such as photos/Coat/1.png."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from fashion.data.dataset import Subset
from fashion.errors import FashionError, printable, some
from fashion.inference import photographs
from fashion.settings.task import FASHION_MNIST, Task


class LabelledError(FashionError):
    """A folder does not hold labelled pictures."""


class Labelled(NamedTuple):
    """Labelled pictures.

    Attributes:
        subset: their images and labels; its name is that of the folder.
        files: their files, in the same order.
        others: files and folders that are passed over, sorted.
    """

    subset: Subset
    files: Sequence[Path]
    others: Sequence[Path]


def folders(task: Task) -> list[str]:
    """Return the classes as names of folders, which cannot contain a slash."""
    return [name.replace("/", "-") for name in task.classes]


def read(folder: Path, task: Task = FASHION_MNIST, invert: str = "auto") -> Labelled:
    """Read the pictures in the class folders of `folder`, and in the folders in these.

    Case and punctuation of a class folder's name do not matter where they tell no classes apart,
    and "tshirt" is enough for T-shirt/top.

    Args:
        folder: the folder.
        task: the classes, and how pictures are converted.
        invert: as for `conversion.convert`.

    Raises:
        LabelledError: it is no folder, has no class folders, has others, or has pictures that
            cannot be read.
    """
    shown, names, known = printable(str(folder)), some(folders(task)), _labels(task)
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise LabelledError(f"cannot read {shown}: {error.strerror}") from error
    classes = [entry for entry in entries if entry.is_dir()]
    if not classes:
        raise LabelledError(f"{shown} has no folders named after the classes, {names}")
    files: list[Path] = []
    labels: list[int] = []
    others = [entry for entry in entries if entry not in classes]
    for entry in classes:
        label = known.get(entry.name, known.get(_key(entry.name)))
        if label is None:
            raise LabelledError(
                f"the folder {printable(str(entry))} is named after none of the classes, {names}"
            )
        found = photographs.find(entry)
        files += found.images
        labels += [label] * len(found.images)
        others += found.others
    images, problems = [], []
    for file in files:
        try:
            images.append(photographs.read(file, invert, task).image)
        except photographs.ImageError as error:
            problems.append(str(error))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise LabelledError(f"{problems[0]}{more}: replace or remove it")
    pixels, true = torch.stack(images), torch.tensor(labels)
    digest = hashlib.sha256(pixels.numpy().tobytes() + true.numpy().tobytes()).hexdigest()[:32]
    name = printable(folder.absolute().name) or "pictures"
    subset = Subset(name, pixels, true, digest, task, source=str(folder.absolute()))
    return Labelled(subset, files, others)


def _key(name: str) -> str:
    return "".join(each for each in name.casefold() if each.isalnum())


def _labels(task: Task) -> dict[str, int]:
    """Return the label by each name that a class folder may have."""
    keys = [
        (_key(each), label)
        for label, name in enumerate(task.classes)
        for each in {name, name.partition("/")[0]}
    ]
    of_key = Counter(key for key, _ in set(keys))
    loose = {key: label for key, label in keys if key and of_key[key] == 1}
    return loose | {name: label for label, name in enumerate(folders(task))}
