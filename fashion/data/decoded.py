"""Decode pictures once, into a file of the cache from which they are mapped into memory."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from fashion.data import contents
from fashion.data.contents import VERSION
from fashion.data.parallel import in_chunks
from fashion.errors import DataError, SettingError, printable
from fashion.files import INCOMING, cache_dir
from fashion.portable import conversion

# Pictures, and bytes of decoded ones, that a process decodes at a time.
CHUNK = 64
CHUNK_BYTES = 2**22
# Gigabytes (10^9 bytes) that decoded pictures take; see `prune`.
LIMIT_VARIABLE, LIMIT_GB = "FASHION_CACHE_GB", 20.0
# Seconds until a message says what is waited for.
PATIENCE = 2.0
PIXELS, SUMS, ABOUT = "pixels", "sums.npy", "about.json"


class Decoded(NamedTuple):
    """Decoded pictures.

    Attributes:
        pixels: uint8, shape (M, channels, height, width), mapped from a file: read-only.
        sums: int64, shape (M, channels, 2): of each picture's values, and of their squares.
        rows: at which row the content with a SHA-256 is.
        problems: why the content with a SHA-256 could not be decoded.
    """

    pixels: Tensor
    sums: np.ndarray
    rows: dict[str, int]
    problems: dict[str, str]


class Pruned(NamedTuple):
    """What `prune` did: bytes that are left, and that were removed."""

    left: int
    removed: int


def folder() -> Path:
    """Return the folder of decoded pictures, which need not exist."""
    return cache_dir() / "pictures"


def limit() -> int:
    """Return how many bytes decoded pictures may take in the cache.

    They are FASHION_CACHE_GB gigabytes, 20 by default.

    Raises:
        SettingError: it is no number, or below 0.
    """
    text = os.environ.get(LIMIT_VARIABLE) or str(LIMIT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1
    if not 0 <= gigabytes < float("inf"):
        raise SettingError(f"{text!r} is not a number of gigabytes", LIMIT_VARIABLE)
    return int(gigabytes * 1e9)


def decode(files: dict[str, str], shape: tuple[int, int, int]) -> Decoded:
    """Return the pictures of these files, each resized by `conversion.fit`.

    They are decoded where the cache does not have them. Other processes that want the same
    wait. What was not used for the longest time makes room, as for `prune`.

    Args:
        files: paths by SHA-256 of their content.
        shape: channels, height and width.

    Raises:
        DataError: the cache cannot be written, or a file has changed.
        SettingError: as for `limit`.
    """
    most, wanted = limit(), sorted(files)
    key = hashlib.sha256("\n".join([VERSION, str(shape), *wanted]).encode()).hexdigest()[:32]
    entry = folder() / key
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with _acquired(_lock(entry)):
            if not (entry / ABOUT).is_file():
                _write(entry, [(each, files[each]) for each in wanted], shape)
            decoded = _open(entry, wanted)
    except OSError as error:
        raise DataError(
            f"cannot keep decoded pictures in {printable(str(folder()))}:"
            f" {error.strerror or error}: choose a folder with space by XDG_CACHE_HOME"
        ) from error
    prune(most)
    return decoded


@contextmanager
def _acquired(path: Path) -> Iterator[None]:
    """Hold a lock; say so if that takes a while."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        print("Waiting for another process that decodes pictures", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _lock(entry: Path) -> Path:
    """Return the lock of an entry, and of others: sixteen files for all, which are never removed.

    Another process may wait for one.
    """
    return entry.with_name(f"{entry.name[0]}.lock")


def _write(entry: Path, files: Sequence[tuple[str, str]], shape: tuple[int, int, int]) -> None:
    """Decode into a new folder, which then gets its name."""
    for leftover in entry.parent.glob(f"{INCOMING}{entry.name}-*"):
        shutil.rmtree(leftover)
    size = int(np.prod(shape))
    needed, free = len(files) * size, shutil.disk_usage(entry.parent).free
    if needed > free:
        raise DataError(
            f"{len(files):,} pictures of {shape[1]}x{shape[2]} pixels take {needed / 1e9:.1f} GB,"
            f" and {printable(str(entry.parent))} has {free / 1e9:.1f}: choose another folder by"
            " XDG_CACHE_HOME, or a smaller image_size"
        )
    problems: dict[int, str] = {}
    sums = []
    with tempfile.TemporaryDirectory(
        dir=entry.parent, prefix=f"{INCOMING}{entry.name}-"
    ) as incoming:
        new = Path(incoming, "new")
        new.mkdir()
        chunk = max(1, min(CHUNK, CHUNK_BYTES // size))
        # Written, not mapped: a full disk is then an error and not a signal.
        with (new / PIXELS).open("wb") as file:
            results = in_chunks(partial(_decode_all, shape=shape), files, chunk, "decoding")
            for number, (pixels, failed) in enumerate(results):
                problems |= {number * chunk + place: why for place, why in failed.items()}
                sums.append(_sums(pixels))
                file.write(pixels.data)
            _sync(file.fileno(), file.flush)
        np.save(new / SUMS, np.concatenate(sums))
        about = {"shape": [len(files) - len(problems), *shape], "problems": problems}
        (new / ABOUT).write_text(json.dumps(about))
        new.rename(entry)


def _sync(descriptor: int, flush: Callable[[], None]) -> None:
    # Else a crash could leave the new name without its content.
    flush()
    os.fsync(descriptor)


def _decode_all(
    files: Sequence[tuple[str, str]], shape: tuple[int, int, int]
) -> tuple[np.ndarray, dict[int, str]]:
    """Return the pictures, uint8 (N, *shape), and why which of the files are not among them.

    Raises:
        DataError: a file has no longer the SHA-256 that is given before its path.
    """
    pixels = np.empty((len(files), *shape), dtype=np.uint8)
    problems: dict[int, str] = {}
    for place, (sha256, path) in enumerate(files):
        try:
            source = contents.load(path)
            changed = contents.digest(source) != sha256
        except OSError:
            changed = True
        if changed:
            raise DataError(f"{printable(path)} has changed while it was read: start again")
        try:
            pixels[place - len(problems)] = conversion.fit(source, shape).numpy()
        except ValueError as error:
            problems[place] = str(error)
    return pixels[: len(files) - len(problems)], problems


def _sums(pixels: np.ndarray) -> np.ndarray:
    """Return the sum of each channel's values and of their squares: int64, (N, channels, 2)."""
    values = pixels.astype(np.int64)
    return np.stack([values.sum(axis=(2, 3)), (values**2).sum(axis=(2, 3))], axis=2)


def _open(entry: Path, wanted: Sequence[str]) -> Decoded:
    about = json.loads((entry / ABOUT).read_text())
    problems = {wanted[int(place)]: why for place, why in about["problems"].items()}
    rows = {each: row for row, each in enumerate(each for each in wanted if each not in problems)}
    shape = tuple(about["shape"])
    if shape[0] == 0:  # an empty file cannot be mapped
        return Decoded(torch.empty(shape, dtype=torch.uint8), np.empty(0), rows, problems)
    file = (entry / PIXELS).open("rb")
    # `prune` sees by this lock that the file is in use. It ends with the file, and that with the
    # last tensor of it.
    fcntl.flock(file, fcntl.LOCK_SH)
    os.utime(entry)
    pixels = _Mapped(file, dtype=np.uint8, mode="r", shape=shape)
    pixels.file = file
    with warnings.catch_warnings(action="ignore"):  # it cannot be written to, nor should it be
        tensor = torch.from_numpy(pixels)
    return Decoded(tensor, np.load(entry / SUMS), rows, problems)


class _Mapped(np.memmap):
    """Keeps the file open from which it is mapped."""

    file: object = None


def prune(most: int = 0) -> Pruned:
    """Remove decoded pictures from the cache, those first that were not used for the longest time.

    Args:
        most: bytes that may be left. What a process uses stays in any case.

    Raises:
        DataError: the cache cannot be read or written.
    """
    try:
        entries = [(_used(path), _size(path), path) for path in _entries()]
        left = total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if left <= most:
                break
            if _remove(path):
                left -= size
    except OSError as error:
        raise DataError(
            f"cannot prune {printable(str(folder()))}: {error.strerror or error}"
        ) from error
    return Pruned(left, total - left)


def _entries() -> Iterator[Path]:
    for path in folder().glob("*") if folder().is_dir() else ():
        if path.suffix != ".lock":
            yield path


def _used(path: Path) -> float:
    with suppress(FileNotFoundError):
        return path.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    size = 0
    for each in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):
            size += each.stat().st_size if each.is_file() else 0
    return size


def _remove(path: Path) -> bool:
    """Remove an index, or a folder of pictures or what is left of one unless it is in use."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return True
    key = path.name.removeprefix(INCOMING)
    try:
        with FileLock(_lock(path.with_name(key)), timeout=0):
            pixels = path / PIXELS
            if pixels.is_file():
                with pixels.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
            else:
                shutil.rmtree(path)
    except (Timeout, BlockingIOError):
        return False
    return True
