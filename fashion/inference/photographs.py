"""Find image files in folders, and read them."""

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from fashion.errors import FashionError, printable
from fashion.inference import conversion
from fashion.inference.conversion import IMAGE_FORMATS, Converted


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


@cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of files of `IMAGE_FORMATS`, in lower case with the dot."""
    Image.init()
    registered = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in registered if name in IMAGE_FORMATS)


def read(path: Path, invert: str = "auto") -> Converted:
    """Read an image file as `conversion.read` does.

    Raises:
        ImageError: as for `conversion.read`; the message names the file.
    """
    try:
        return conversion.read(path, invert)
    except ValueError as error:
        raise ImageError(f"cannot read {printable(str(path))}: {error}") from error
