"""Commands in processes of their own, forked from one that has imported what they import.

A command spends more time on importing PyTorch and MLflow than on training a small model, and the
tests start a hundred.
"""

import multiprocessing
import os
import resource
import runpy
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from fashion.errors import FashionError

# The variable that tells the process of `preload` where a store without runs is.
EMPTY_STORE = "TESTS_EMPTY_STORE"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.preload"])


class Process:
    """`python -m MODULE ARGUMENTS`, with the part of `subprocess.Popen` that the tests use.

    Args:
        env: its variables, in place of this process's; OMP_NUM_THREADS is one of them.

    Attributes:
        pid: of the process.
        stdout: the lines of its output, and of its errors unless those go to the file `stderr`.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        stderr: Path | None = None,
    ) -> None:
        reader, writer = _context.Pipe(duplex=False)
        self._process = _context.Process(
            target=_run, args=(module, arguments, dict(env or os.environ), cwd, writer, stderr)
        )
        self._process.start()
        writer.close()
        self.pid = self._process.pid
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def returncode(self) -> int | None:
        """The exit code, negative after a signal; None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it has ended, at most `timeout` seconds; return its `returncode`."""
        self._process.join(timeout)
        return self.returncode

    def communicate(self) -> str:
        """Return the rest of its output, once it has ended."""
        output = self.stdout.read()
        self.wait()
        return output

    def kill(self) -> None:
        """Kill it, unless it has ended."""
        self._process.kill()
        self._process.join()


def growth_of_the_peak(call: Callable[[Any], Any], argument: Any) -> float:
    """Return by how many MiB the peak of a process of its own grows in a call that must fail."""
    with ProcessPoolExecutor(1, _context) as pool:
        return pool.submit(_growth, call, argument).result()


def _growth(call: Callable[[Any], Any], argument: Any) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        call(argument)
    except FashionError:
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    raise AssertionError("the call did not fail")


def _run(
    module: str,
    arguments: tuple[str, ...],
    env: Mapping[str, str],
    cwd: Path,
    stdout: Connection,
    stderr: Path | None,
) -> None:
    """Become the command."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    os.dup2(stdout.fileno(), 1)
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT) if stderr else 1, 2)
    stdout.close()
    # OpenMP has read its variable before.
    torch.set_num_threads(int(env["OMP_NUM_THREADS"]))
    sys.argv[1:] = arguments
    sys.modules.pop(module, None)  # as it is run, not imported
    runpy.run_module(module, run_name="__main__", alter_sys=True)
