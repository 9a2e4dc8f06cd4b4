"""Write files whole or not at all; where downloads, compiled kernels and unfinished runs are."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fashion.errors import FashionError


class FileError(FashionError):
    """A file cannot be written."""


def cache_dir() -> Path:
    """Return this project's folder in the user's cache; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fashion-mnist"


def state_dir() -> Path:
    """Return the folder that unfinished runs are kept in; it need not exist.

    It is FASHION_STATE_DIR, else this project's folder in the user's state.
    """
    chosen = os.environ.get("FASHION_STATE_DIR")
    if chosen:
        return Path(chosen).expanduser()
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return state / "fashion-mnist"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write what `path` shall hold; it takes its place when the block succeeds.

    Folders that are missing are made. When the block fails, a file that was there before stays.
    What is no file, such as /dev/stdout, is written to and not replaced.

    Raises:
        FileError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".incoming-") as folder:
            file = Path(folder, path.name)
            yield file
            if path.exists() and not path.is_file() and not path.is_dir():
                path.write_bytes(file.read_bytes())
            else:
                file.replace(path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
