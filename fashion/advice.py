"""Commands that messages print for the user to run."""

import os
import sys
from pathlib import Path

# MLflow removes the variable when it opens the run that `mlflow run` has created.
_STARTED_BY_MLFLOW = "MLFLOW_RUN_ID" in os.environ


def command(entry_point: str, **parameters: object) -> str:
    """Return the command that runs an entry point, as this process was started."""
    if _STARTED_BY_MLFLOW:
        words = ["mlflow run .", f"-e {entry_point}", *_environment_manager()]
        words += [f"-P {name}={value}" for name, value in parameters.items()]
    else:
        words = [f"python -m entrypoints.{entry_point}"]
        words += [f"--{name.replace('_', '-')} {value}" for name, value in parameters.items()]
    return " ".join(words)


def _environment_manager() -> list[str]:
    """Return the option by which `mlflow run` uses the environment of this process."""
    if sys.prefix == os.environ.get("CONDA_PREFIX"):
        return []  # the default
    built_by_uv = Path(os.environ.get("MLFLOW_ENV_ROOT") or "~/.mlflow/envs").expanduser()
    manager = "uv" if Path(sys.prefix).is_relative_to(built_by_uv) else "local"
    return [f"--env-manager {manager}"]
