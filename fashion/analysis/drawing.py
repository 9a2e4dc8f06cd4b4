"""Draw figures in a process of their own, while this one goes on.

A run's figures take as long as logging its model, and each of the two keeps one core busy.
"""

import atexit
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

ROOT = Path(__file__).parents[2]
FIGURES = "fashion.analysis.figures"


@dataclass(frozen=True)
class Drawing:
    """A figure to draw into a file.

    Attributes:
        path: the file, absolute.
        figure: name of the function in `figures` that draws it.
        arguments: those of the function, without tensors.
    """

    path: Path
    figure: str
    arguments: tuple[Any, ...]


def draw(drawing: Drawing) -> None:
    """Draw a figure here and now."""
    resolve_name(f"{FIGURES}:{drawing.figure}")(*drawing.arguments).savefig(drawing.path)


# The process that draws, if it was started.
_started: list[Any] = []


def start() -> None:
    """Start the process that is going to draw, so that it imports matplotlib while others import.

    It ends with this one, and does not hear a Ctrl-C at the terminal. Of the processes of torchrun
    only the first draws.
    """
    if not _started and os.environ.get("RANK", "0") == "0":
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
            start_new_session=True,
        )
        _started.append(process)
        atexit.register(process.kill)


@contextmanager
def drawn(drawings: Sequence[Drawing]) -> Iterator[None]:
    """Draw figures while the body runs; they are done when it has ended.

    What the process of `start` does not draw, for whatever reason, or all if it was not started, is
    drawn here, which also raises what went wrong.
    """
    asked = _ask(drawings)
    try:
        yield
    except BaseException:
        _stop()  # its answer would be taken for that to the next question
        raise
    if not (asked and _answered()):
        _stop()
        for each in drawings:
            draw(each)


def _ask(drawings: Sequence[Drawing]) -> bool:
    """Send the drawings to the process; return whether it has taken them."""
    for process in _started:
        with suppress(OSError):
            pickle.dump(drawings, process.stdin)
            process.stdin.flush()
            return True
    return False


def _answered() -> bool:
    """Wait until the process has drawn everything, or has ended; return whether it has drawn."""
    return any(process.stdout.readline() for process in _started)


def _stop() -> None:
    while _started:
        process = _started.pop()
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()
        process.wait()


def _work() -> None:
    """Draw what is asked for on standard input, until that ends."""
    resolve_name(FIGURES)
    while True:
        try:
            drawings = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the parent process
        except EOFError:
            return
        for each in drawings:
            draw(each)
        print(flush=True)


if __name__ == "__main__":
    _work()
