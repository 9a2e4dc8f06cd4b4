"""Find image files in folders, and read them."""

import os
from pathlib import Path
from typing import NamedTuple

from fashion.data.listing import suffixes
from fashion.errors import FashionError, SettingError, printable
from fashion.portable import conversion
from fashion.portable.conversion import Converted
from fashion.settings.task import FASHION_MNIST, Task


class ImageError(FashionError):
    """A file cannot be read as an image, or shows nothing."""


class Found(NamedTuple):
    """What a path holds.

    Attributes:
        images: files to read, sorted.
        others: files and folders that are passed over, sorted: those with other suffixes, hidden
            ones, and links to folders.
    """

    images: list[Path]
    others: list[Path]


def find(path: Path) -> Found:
    """Find the image files in a folder and the folders in it, by their suffix.

    A path that is not a folder, a folder without image files, and a folder that cannot be listed
    are among the images themselves, so that `read` reports the error.
    """
    images: list[Path] = []
    others: list[Path] = []

    def unreadable(error: OSError) -> None:
        images.append(Path(error.filename))

    for folder, folders, files in os.walk(path, onerror=unreadable):
        entered: list[Path] = []
        for entry in (Path(folder, name) for name in folders):
            passed_over = entry.name.startswith(".") or entry.is_symlink()
            (others if passed_over else entered).append(entry)
        folders[:] = [entry.name for entry in entered]
        for entry in (Path(folder, name) for name in files):
            hidden = entry.name.startswith(".")
            passed_over = hidden or entry.suffix.lower() not in suffixes()
            (others if passed_over else images).append(entry)
    return Found(sorted(images) or [path], sorted(others))


def check_invert(invert: str, task: Task) -> None:
    """Raise SettingError if pictures are to be inverted that a model takes as they are."""
    if invert != "auto" and not task.extract:
        raise SettingError(f"pictures are not inverted for {printable(task.title)}", "invert")


def read(path: Path, invert: str = "auto", task: Task = FASHION_MNIST) -> Converted:
    """Read an image file as a model of `task` takes it: its foreground, or the whole resized.


    Raises:
        ImageError: as for `conversion.read` and `conversion.fit`; the message names the file.
    """
    try:
        if task.extract:
            return conversion.read(path, invert)
        return Converted(conversion.fit(path, task.shape), cluttered=False)
    except ValueError as error:
        raise ImageError(f"cannot read {printable(str(path))}: {error}") from error
