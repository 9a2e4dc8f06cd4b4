"""Commands that messages print for the user to run, from the project's folder."""

import os
import shlex
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from fashion.errors import FashionError

_ROOT = Path(__file__).parents[1]

# MLflow removes the variable when it opens the run that `mlflow run` has created.
_STARTED_BY_MLFLOW = "MLFLOW_RUN_ID" in os.environ


def command(entry_point: str, **parameters: object) -> str:
    """Return the command that runs an entry point, as this process was started."""
    if _STARTED_BY_MLFLOW:
        return " ".join(mlflow_run(entry_point, parameters))
    words = [f"python -m entrypoints.{entry_point}"]
    words += [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, value in parameters.items()
    ]
    return " ".join(words)


def mlflow_run(entry_point: str, parameters: Mapping[str, object]) -> list[str]:
    """Return an `mlflow run` command for a shell: what it begins with, then each parameter."""
    beginning = " ".join(["mlflow run .", f"-e {entry_point}", *_environment_manager()])
    values = (shlex.quote(f"{name}={value}") for name, value in parameters.items())
    return [beginning, *(f"-P {value}" for value in values)]


class MissingPackageError(FashionError):
    """A package of an optional dependency group is not installed."""


def require(group: str, *modules: str) -> None:
    """Check that modules which a dependency group of pyproject.toml brings are installed.

    Raises:
        MissingPackageError: one is missing; the message has the command that installs the group.
    """
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise MissingPackageError(f"{', '.join(missing)} not installed: {_install(group)}")


def _install(group: str) -> str:
    """Return the command that adds a dependency group to the environment of this process."""
    fetch, uv = "", ".uv/bin/uv"
    # Its own uv first: one in this environment is on the user's PATH only if it is activated.
    if not (_ROOT / uv).exists():
        if shutil.which("uv"):
            uv = "uv"
        else:
            fetch = "python3 -m pip install -qq --target .uv uv && "
    target = f"UV_PROJECT_ENVIRONMENT={shlex.quote(sys.prefix)} "
    if Path(sys.prefix) == _ROOT / ".venv":
        target = ""  # uv's default
    return f"{fetch}{target}{uv} sync --inexact --only-group {group}"


def _environment_manager() -> list[str]:
    """Return the option by which `mlflow run` uses the environment of this process."""
    if sys.prefix == os.environ.get("CONDA_PREFIX"):
        return []  # the default
    built_by_uv = Path(os.environ.get("MLFLOW_ENV_ROOT") or "~/.mlflow/envs").expanduser()
    manager = "uv" if Path(sys.prefix).is_relative_to(built_by_uv) else "local"
    return [f"--env-manager {manager}"]
