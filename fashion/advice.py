"""Commands that messages print for the user to run."""

import os

# MLflow removes the variable when it opens the run that `mlflow run` has created.
_STARTED_BY_MLFLOW = "MLFLOW_RUN_ID" in os.environ


def command(entry_point: str, **parameters: object) -> str:
    """Return the command that runs an entry point, as this process was started."""
    if _STARTED_BY_MLFLOW:
        words = [f"mlflow run . -e {entry_point} --env-manager local"]
        words += [f"-P {name}={value}" for name, value in parameters.items()]
    else:
        words = [f"python -m entrypoints.{entry_point}"]
        words += [f"--{name.replace('_', '-')} {value}" for name, value in parameters.items()]
    return " ".join(words)
