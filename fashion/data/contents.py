"""Identify pictures by their content, without reading again what has not changed."""

import hashlib
import json
import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import PIL

from fashion.data.parallel import in_chunks
from fashion.files import FileError, replacing
from fashion.portable import conversion

CHUNK = 64
# Larger files are no pictures of the permitted number of pixels.
MAX_BYTES = 2**30
# Of what is larger, processes do not hold the file's content beside the pixels.
LARGE_BYTES = 2**26
# Which code read them: that of `conversion`, and Pillow.
VERSION = hashlib.sha256(
    Path(conversion.__file__).read_bytes() + PIL.__version__.encode()
).hexdigest()
# A file may change again within the resolution of its time, so what has just changed is read anew.
SETTLED_NS = 2_000_000_000


class Content(NamedTuple):
    """What a file holds.

    Attributes:
        sha256: of the file, as hexadecimal digits; empty if it cannot be read.
        width, height: in pixels, 0 if unknown.
        grey: whether it has one channel.
        problem: why it cannot be decoded, as far as its header tells; empty if it can.
    """

    sha256: str
    width: int
    height: int
    grey: bool
    problem: str


def examine(paths: Sequence[str], index: Path) -> list[Content]:
    """Return the content of each file.

    Args:
        paths: the files.
        index: a file that keeps the results; of files whose size, times and inode are as they were,
            the content is known from it.
    """
    known = _load(index)
    stamps = [_stamp(path) for path in paths]
    changed = [
        path
        for path, stamp in zip(paths, stamps, strict=True)
        if stamp is None or path not in known or known[path][0] != stamp
    ]
    before = time.time_ns()
    results = in_chunks(_examine_all, changed, CHUNK, "reading")
    read = dict(zip(changed, chain.from_iterable(results), strict=True))
    contents = [read[path] if path in read else Content(*known[path][1]) for path in paths]
    if changed or len(known) != len(set(paths)):
        _save(
            index,
            {
                path: (stamp, content)
                for path, stamp, content in zip(paths, stamps, contents, strict=True)
                if stamp and content.sha256 and max(stamp[1:3]) < before - SETTLED_NS
            },
        )
    return contents


def load(path: str) -> bytes | Path:
    """Return the content of a file, or where it is if it is large, for `conversion`."""
    file = Path(path)
    return file.read_bytes() if file.stat().st_size <= LARGE_BYTES else file


def _examine_all(paths: Sequence[str]) -> list[Content]:
    return [_examine(path) for path in paths]


def _examine(path: str) -> Content:
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            return Content("", 0, 0, False, "not a regular file")
        if status.st_size > MAX_BYTES:
            return Content("", 0, 0, False, f"more than {MAX_BYTES // 2**20} MiB")
        source = load(path)
        sha256 = digest(source)
    except (OSError, ValueError) as error:  # ValueError: a null byte in a name
        return Content("", 0, 0, False, getattr(error, "strerror", None) or str(error))
    try:
        return Content(sha256, *conversion.describe(source), "")
    except ValueError as error:
        return Content(sha256, 0, 0, False, str(error))


def digest(source: bytes | Path) -> str:
    """Return the SHA-256 of what `load` returned."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: str) -> list[int] | None:
    """Return what changes with a file, None if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116  a Path for each of many files takes longer
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _load(index: Path) -> dict[str, tuple[list[int], list]]:
    try:
        kept = json.loads(index.read_bytes())
        return kept["files"] if kept["version"] == VERSION else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _save(index: Path, entries: dict[str, tuple[list[int], Content]]) -> None:
    # Reading everything again is all that is lost.
    with suppress(FileError), replacing(index) as file:
        file.write_text(json.dumps({"version": VERSION, "files": entries}))
