"""Output that nobody can read, or whose terminal cannot show it, does not stop a command."""

import io
import os
import sys

import pytest

from entrypoints.cli.streams import tolerant_streams


def test_what_a_terminal_cannot_show_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(writer, "w"), encoding="ascii"))
    with tolerant_streams():
        print("88 ± 1")
    sys.stdout.close()
    assert os.read(reader, 100) == b"88 ? 1\n"
    os.close(reader)


def test_a_closed_terminal_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(writer, "w")))
    with tolerant_streams():
        print("lost", flush=True)
        print("lost too")


def test_a_full_disk_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO("/dev/full", "w")))
    with pytest.raises(OSError, match="No space left"), tolerant_streams():
        print("lost", flush=True)
