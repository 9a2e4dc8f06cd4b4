"""Write files atomically; locate the cache and state folders."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path, user_state_path

from fashion.errors import FashionError

NAME = "fashion-mnist"
# Prefix of the folders with files that are being written.
INCOMING = ".incoming-"


class FileError(FashionError):
    """A file cannot be written."""


def cache_dir() -> Path:
    """Return the folder for downloads and compiled kernels, which need not exist."""
    return user_cache_path(NAME)


def state_dir() -> Path:
    """Return the folder for unfinished runs, which need not exist.

    It is FASHION_STATE_DIR, else this project's folder in the user's state directory.
    """
    chosen = os.environ.get("FASHION_STATE_DIR")
    return expanded(chosen) if chosen else user_state_path(NAME)


def expanded(path: str) -> Path:
    """Return a path with ~ or ~user replaced by that user's home folder.

    Raises:
        FileError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise FileError(
            f"{path} begins with a user that this machine does not have: ./{path} is a file of that"
            " name"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file written there replaces `path` if the block succeeds.

    Missing folders are created. If the block fails, an existing file stays. Special files, such as
    /dev/stdout, are written to and not replaced.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=INCOMING) as folder:
            file = Path(folder, path.name)
            yield file
            if path.exists() and not path.is_file() and not path.is_dir():
                path.write_bytes(file.read_bytes())
            else:
                # Else a crash could leave the name of the new file without its content.
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                file.replace(path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
