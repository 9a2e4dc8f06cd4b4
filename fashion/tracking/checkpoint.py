"""Save and load checkpoints, from which unfinished runs are resumed.

Each run has a folder, named by its id, with a checkpoint and a lock. The process that trains the
run holds the lock; the operating system releases it when that process dies.
"""

import io
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from fashion.errors import FashionError
from fashion.files import INCOMING, FileError, replacing, state_dir

CHECKPOINT = "checkpoint.pt"
LOCK = "lock"
# File with the plan of an unfinished parent of several runs.
GROUP = "group.json"
# File with the options of an unfinished sweep.
SWEEP = "sweep.json"
RUN_ID = re.compile(r"[0-9a-f]{32}")


class CheckpointError(FashionError):
    """There is no usable checkpoint, or another process uses the run."""


def prepare() -> None:
    """Create the folder for checkpoints.

    Raises:
        FileError: it cannot be created or written.
    """
    root = state_dir() / "runs"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK):
            raise PermissionError(None, "it is read-only")
    except OSError as error:
        raise FileError(
            f"cannot write checkpoints to {root} ({error.strerror or error}):"
            " set FASHION_STATE_DIR to a writable folder"
        ) from error


@contextmanager
def held(run_id: str) -> Iterator[None]:
    """Lock a run against other processes; create its folder if it is missing.

    Raises:
        CheckpointError: another process holds the lock.
        FileError: the folder cannot be written.
    """
    prepare()
    directory = folder(run_id)
    lock = FileLock(directory / LOCK)
    try:
        directory.mkdir(exist_ok=True)
        lock.acquire(blocking=False)
        # A process that was killed while it wrote a file has left a part of it.
        for leftover in directory.glob(f"{INCOMING}*"):
            shutil.rmtree(leftover, ignore_errors=True)
    except Timeout as error:
        raise CheckpointError(
            f"run {run_id} is in use by another process: wait until it has ended; if it ran on a"
            f" machine that is gone, delete {lock.lock_file}"
        ) from error
    except OSError as error:
        raise FileError(f"cannot write {directory}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def save(run_id: str, content: Mapping[str, Any]) -> None:
    """Replace a run's checkpoint atomically.

    Args:
        run_id: the run, whose lock the caller holds.
        content: tensors, numbers, strings, and lists, tuples and dictionaries of them.

    Raises:
        FileError: the checkpoint cannot be written; the previous one stays.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    with replacing(folder(run_id) / CHECKPOINT) as path:
        path.write_bytes(buffer.getbuffer())


def load(run_id: str) -> dict[str, Any]:
    """Return a run's last checkpoint, with tensors on the CPU. Code in the file is not executed.

    Raises:
        CheckpointError: there is no checkpoint, or it is damaged.
    """
    path = folder(run_id) / CHECKPOINT
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"this machine has no checkpoint of run {run_id}") from error
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged: delete its folder") from error


def unfinished() -> list[str]:
    """Return the ids of the runs that have a folder here, most recently written first."""
    written = {
        path.name: path.stat().st_mtime
        for path in (state_dir() / "runs").glob("*")
        if RUN_ID.fullmatch(path.name)
    }
    return sorted(written, key=written.__getitem__, reverse=True)


def written_at(run_id: str) -> datetime:
    """Return when a run's folder was last written, in local time."""
    return datetime.fromtimestamp(folder(run_id).stat().st_mtime).astimezone()


def exists(run_id: str) -> bool:
    """Return whether a run has a checkpoint; the first is written before training starts."""
    return (folder(run_id) / CHECKPOINT).is_file()


def is_group(run_id: str) -> bool:
    """Return whether a run is an unfinished parent of several training runs."""
    return (folder(run_id) / GROUP).is_file()


def is_empty(run_id: str) -> bool:
    """Return whether a run's folder is missing, or contains nothing but the lock."""
    directory = folder(run_id)
    return not directory.exists() or {path.name for path in directory.iterdir()} <= {LOCK}


def forget(run_id: str) -> None:
    """Delete a run's folder."""
    shutil.rmtree(folder(run_id), ignore_errors=True)


def folder(run_id: str) -> Path:
    """Return the path of a run's folder, which need not exist.

    Raises:
        CheckpointError: `run_id` is not the id of a run.
    """
    if not RUN_ID.fullmatch(run_id):
        raise CheckpointError(f"{run_id!r} is not the id of a run")
    return state_dir() / "runs" / run_id
