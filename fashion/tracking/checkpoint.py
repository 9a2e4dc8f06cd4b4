"""What is kept on this machine of a run until it has finished: enough to go on from.

Each run has a folder of its own name with a checkpoint and a lock. The process that trains the run
holds the lock, and the operating system takes it back from a process that dies, however it dies.
"""

import io
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from fashion.errors import FashionError
from fashion.files import FileError, replacing, state_dir

CHECKPOINT = "checkpoint.pt"
LOCK = "lock"
RUN_ID = re.compile(r"[0-9a-f]{32}")


class CheckpointError(FashionError):
    """There is nothing to go on from, or another process is at it."""


def prepare() -> None:
    """Make the folder of all runs.

    Raises:
        FileError: it cannot be written to.
    """
    root = state_dir() / "runs"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK):
            raise PermissionError(None, "it is read-only")
    except OSError as error:
        raise FileError(
            f"cannot keep checkpoints in {root} ({error.strerror or error}):"
            " name a writable folder by FASHION_STATE_DIR"
        ) from error


@contextmanager
def held(run_id: str) -> Iterator[None]:
    """Keep other processes off a run; its folder is made if there is none.

    Raises:
        CheckpointError: another process holds it.
        FileError: the folder cannot be written.
    """
    prepare()
    kept = folder(run_id)
    lock = FileLock(kept / LOCK)
    try:
        kept.mkdir(exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise CheckpointError(f"another process is at run {run_id}: wait for its end") from error
    except OSError as error:
        raise FileError(f"cannot write {kept}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def save(run_id: str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the one before: always one of the two is there, and whole.

    Args:
        run_id: the run's, held by the caller.
        content: tensors, numbers, texts, and lists, tuples and dictionaries of them.

    Raises:
        FileError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    with replacing(folder(run_id) / CHECKPOINT) as path, path.open("wb") as file:
        file.write(buffer.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def load(run_id: str) -> dict[str, Any]:
    """Return what was saved last, its tensors on the CPU. No code in the file is run.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    path = folder(run_id) / CHECKPOINT
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"this machine has no checkpoint of a run {run_id}") from error
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: delete its folder") from error


def unfinished() -> list[str]:
    """Return the ids of the runs that something is kept of, the one written last first."""
    written = {
        path.name: path.stat().st_mtime
        for path in (state_dir() / "runs").glob("*")
        if RUN_ID.fullmatch(path.name)
    }
    return sorted(written, key=written.__getitem__, reverse=True)


def exists(run_id: str) -> bool:
    """Tell whether a run has a checkpoint, which it gets as soon as its settings are known."""
    return (folder(run_id) / CHECKPOINT).is_file()


def is_empty(run_id: str) -> bool:
    """Tell whether nothing is kept of a run but its lock."""
    kept = folder(run_id)
    return not kept.exists() or {path.name for path in kept.iterdir()} <= {LOCK}


def forget(run_id: str) -> None:
    """Delete what is kept of a run."""
    shutil.rmtree(folder(run_id), ignore_errors=True)


def folder(run_id: str) -> Path:
    """Return where what is kept of a run is; it need not exist.

    Raises:
        CheckpointError: this is not the id of a run.
    """
    if not RUN_ID.fullmatch(run_id):
        raise CheckpointError(f"{run_id!r} is not the id of a run")
    return state_dir() / "runs" / run_id
