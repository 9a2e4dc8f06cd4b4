"""Check out a commit of this project into a temporary folder, and install its lock there."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from fashion.errors import FashionError, printable
from fashion.tracking.store import reason

ROOT = Path(__file__).parents[2]
# What a commit needs, so that it can be installed and trained.
NEEDED = ("uv.lock", "entrypoints/train.py")
PREFIX = "fashion-reproduce-"
# After a SIGTERM: a training ends its run first.
EXIT_SECONDS = 15
# Variables, by their beginnings, that point to this process's environment, store or run.
OURS = (
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_",
    "MLFLOW_TRACKING_",
    "MLFLOW_REGISTRY_URI",
    "PYTHONHOME",
    "PYTHONPATH",
    "UV_PROJECT",
    "VIRTUAL_ENV",
)


class CheckoutError(FashionError):
    """A commit cannot be checked out, installed or run."""


def check(commit: str) -> None:
    """Check that a commit can be checked out and installed.

    Raises:
        CheckoutError: it is not in this repository, or it lacks the lock or the command that
            trains; or there is no repository, no git or no uv.
    """
    _uv()
    if not shutil.which("git"):
        raise CheckoutError("git is not installed, or not on PATH")
    if not _git("rev-parse", "--git-dir"):
        raise CheckoutError(f"{ROOT} is no git repository: clone the project")
    if not _git("cat-file", "-e", f"{commit}^{{commit}}"):
        raise CheckoutError(
            f"commit {printable(commit)} is not in the repository {ROOT}: git fetch the branch that"
            " has it"
        )
    for name in NEEDED:
        if not _git("cat-file", "-e", f"{commit}:./{name}"):
            raise CheckoutError(f"commit {commit} cannot be trained again: it has no {name}")


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Yield a temporary folder with the files of a commit; it is deleted afterwards.

    The repository is only read.

    Raises:
        CheckoutError: the files cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        archive = folder / "commit.tar"
        run(
            "check the commit out",
            ["git", "archive", f"--output={archive}", commit],
            ROOT,
            os.environ,
        )
        with tarfile.open(archive) as files:
            files.extractall(folder, filter="data")
        archive.unlink()
        yield folder
    except (OSError, tarfile.TarError) as error:
        raise CheckoutError(f"cannot use {folder}: {reason(error)}") from error
    finally:
        try:
            shutil.rmtree(folder, ignore_errors=True)
        except KeyboardInterrupt:
            # There is no second one: a repeated signal ends the process.
            shutil.rmtree(folder, ignore_errors=True)
            raise


def install(folder: Path, python: str) -> Path:
    """Install the lock of a checked out commit into the folder; return the Python that has it.

    Args:
        folder: the folder.
        python: the version of Python, such as 3.11; empty for any.

    Raises:
        CheckoutError: uv cannot install it.
    """
    environment = folder / ".venv"
    command = [_uv(), "sync", "--frozen", "--no-default-groups", "--quiet"]
    if python == f"{sys.version_info.major}.{sys.version_info.minor}":
        command += ["--python", sys.executable]
    elif python:
        command += ["--python", python]
    variables = clean(os.environ) | {"UV_PROJECT_ENVIRONMENT": str(environment)}
    run("install the lock of the commit", command, folder, variables)
    return environment / "bin" / "python"


def clean(variables: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables without those of `OURS`."""
    return {name: value for name, value in variables.items() if not name.startswith(OURS)}


def run(
    task: str,
    command: Sequence[str],
    folder: Path,
    variables: Mapping[str, str],
    show: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a command in a folder, to its end.

    If this is interrupted, the command and its own processes are ended first.

    Args:
        task: what it is to do, for the error message.
        command: the command.
        folder: the working directory.
        variables: its environment.
        show: called with each line that it prints, errors among them.

    Raises:
        CheckoutError: it failed; the message has the last line that it printed.
    """
    last = ""
    with subprocess.Popen(
        command,
        cwd=folder,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        # Ctrl-C at the terminal would reach it, too.
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                last = line.strip() or last
                show(line.rstrip())
            process.wait()
        except BaseException:
            process.stdout.close()
            _end(process)
            raise
    if process.returncode:
        said = textwrap.shorten(printable(last.removeprefix("Error: ")), 300)
        raise CheckoutError(f"cannot {task}: {said or f'exit code {process.returncode}'}")


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(EXIT_SECONDS)
    except subprocess.TimeoutExpired:
        for each in psutil.Process(process.pid).children(recursive=True):
            each.kill()
        process.kill()


def _uv() -> str:
    own = ROOT / ".uv" / "bin" / "uv"
    found = str(own) if own.exists() else shutil.which("uv")
    if not found:
        raise CheckoutError(
            "uv is not on PATH: python3 -m pip install -qq --target .uv uv, in the project's folder"
        )
    return found


def _git(*arguments: str) -> bool:
    """Return whether a git command succeeds in this project's folder."""
    return not subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True).returncode
