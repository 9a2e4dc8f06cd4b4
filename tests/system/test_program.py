"""A command as a program: it ends at once, with its exit code, and loses no output."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import atexit, sys
import click
from entrypoints.cli import program

class Heavy:
    def __del__(self):
        print("destroyed")

heavy = Heavy()

@click.command()
@click.argument("end")
def command(end):
    atexit.register(print, "exit handler")
    print("said")
    if end == "usage":
        raise click.UsageError("wrong")
    if end == "bug":
        1 / 0
    sys.exit({"fine": None, "signal": 130, "words": "words"}[end])

program.run(command)
"""


@pytest.mark.parametrize(
    ("end", "exit_code", "at_once", "error"),
    [
        ("fine", 0, True, ""),
        ("signal", 130, True, ""),
        ("usage", 2, True, "Error: wrong\n"),
        ("words", 1, False, "words\n"),
        ("bug", 1, False, "ZeroDivisionError: division by zero\n"),
    ],
)
def test_a_program_ends_when_its_exit_handlers_have_run(
    end: str, exit_code: int, at_once: bool, error: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, end], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == exit_code
    assert done.stdout == "said\nexit handler\n" + ("" if at_once else "destroyed\n")
    assert done.stderr.endswith(error)
