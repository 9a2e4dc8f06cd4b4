"""Run a command as a program of its own."""

import atexit
import os
import sys
from contextlib import suppress
from typing import Any

import click


def run(command: click.Command, **options: Any) -> None:
    """Run the command, and end the process as soon as all exit handlers have run.

    Python would then destroy the half a million objects of torch and MLflow, which takes one to
    three seconds and changes nothing.

    Args:
        command: the command.
        options: of its `main`.
    """
    status = 0

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                with suppress(OSError, ValueError):  # closed, or nobody reads it
                    stream.flush()
        os._exit(status)

    # The first to be registered is the last to run.
    atexit.register(leave)
    try:
        command.main(**options)
    except BaseException as stop:
        if isinstance(stop, SystemExit) and isinstance(stop.code, int | None):
            status = stop.code or 0
        else:
            atexit.unregister(leave)  # Python has words and exit codes of its own for it
        raise
