"""Folders of pictures, made by tests."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fashion.data.dataset import Subset


def write_digits(folder: Path, per_class: int = 1_000) -> Path:
    """Write handwritten digits, grey PNGs of 8x8 pixels, into one folder for each; return it.

    They are the 1,797 of scikit-learn, from the "Optical Recognition of Handwritten Digits" of the
    UCI repository (E. Alpaydin and C. Kaynak, 1998; CC BY 4.0), which scikit-learn (BSD licence)
    ships.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    written = [0] * 10
    for image, label in zip(digits.images, digits.target, strict=True):
        if written[label] < per_class:
            levels = (image * 255 / 16).round().astype(np.uint8)
            write(folder / str(label) / f"{written[label]:03}.png", levels)
            written[label] += 1
    return folder


def write_photographs(folder: Path, subset: Subset, size: int = 64) -> Path:
    """Write images as JPEGs of three colours in one folder for each class; return the folder."""
    written = [0] * len(subset.task.classes)
    for image, label in zip(subset.images, subset.labels.tolist(), strict=True):
        picture = Image.fromarray(image[0].numpy()).resize((size, size), Image.Resampling.BICUBIC)
        path = folder / name_of(subset.task.classes[label]) / f"{written[label]:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.convert("RGB").save(path, quality=90)
        written[label] += 1
    return folder


def name_of(label: str) -> str:
    """Return a class as the name of a folder, which cannot contain a slash."""
    return label.replace("/", "-")


def write(path: Path, levels: np.ndarray | Tensor | Sequence) -> Path:
    """Write an array (height, width) or (height, width, 3) in the format of the suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(levels, dtype=np.uint8)).save(path)
    return path


def noise(seed: int, height: int = 10, width: int = 10, channels: int = 3) -> np.ndarray:
    """Return random levels: uint8, shape (height, width, channels), without the last if it is 1."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, channels))
    return levels.astype(np.uint8).squeeze(2) if channels == 1 else levels.astype(np.uint8)


def write_classes(folder: Path, classes: Sequence[str] = ("cat", "dog"), each: int = 4) -> Path:
    """Write different pictures of 10x10 pixels into one folder a class; return the folder."""
    # Of the path too, so that no two folders of a test hold the same.
    first = sum(map(ord, folder.name)) * 1_000
    for place, name in enumerate(classes):
        for number in range(each):
            write(folder / name / f"{number}.png", noise(first + 100 * place + number))
    return folder
