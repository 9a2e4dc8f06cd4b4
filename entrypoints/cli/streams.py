"""Standard output and error that never break a command."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EBADF, EIO, EPIPE
from typing import Any, TextIO

# Errors of writing when a terminal was closed, or nobody reads a pipe any more.
NOBODY_READS = (EPIPE, EIO, EBADF)


class _Output(io.FileIO):
    """A file descriptor to which writing succeeds even if nobody reads it any more."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in NOBODY_READS:
                raise
            return len(data)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Replace characters that the output cannot encode, and ignore that it was closed.

    Else a closed terminal, or one that shows only ASCII, would end a training as FAILED.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _tolerant(sys.stdout), _tolerant(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        sys.stdout, sys.stderr = before


@contextmanager
def copied_output(most: int) -> Iterator[Callable[[], str]]:
    """Within the block, the yielded function returns what was printed so far.

    Args:
        most: of a longer text, only so many characters of its beginning are kept.
    """
    before, copy = sys.stdout, _Copying(sys.stdout, most)
    sys.stdout = copy
    try:
        yield lambda: copy.text
    finally:
        sys.stdout = before


class _Copying(io.TextIOBase):
    """A stream that also keeps what is written to it."""

    def __init__(self, stream: TextIO, most: int) -> None:
        self._stream, self._most, self.text = stream, most, ""

    def write(self, text: str, /) -> int:
        self.text += text[: self._most - len(self.text)]
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding


def _tolerant(stream: TextIO) -> TextIO:
    if not isinstance(stream, io.TextIOWrapper):  # None in a process without streams
        return stream
    try:
        number = stream.fileno()
    except OSError:  # not a file, as in a test
        stream.reconfigure(errors="replace")
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering or os.isatty(number),
        write_through=stream.write_through,
    )
