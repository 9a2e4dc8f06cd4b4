"""The run that `mlflow run` creates before it starts an entry point.

Importing this imports neither MLflow nor torch, so that a command that is refused or interrupted
before it has imported them can still say why in that run.

`python -m fashion.tracking.launcher RUN_ID PID` restores KILLED after `mlflow run` has ended.
"""

import os
import re
import subprocess
import sys
from contextlib import suppress

import psutil

from fashion.settings.tags import FAILURE_TAG

# MLflow deletes the variable when the entry point opens the run.
VARIABLE = "MLFLOW_RUN_ID"
INTERRUPTED = "interrupted"
# Most characters of a command's output in a note; MLflow allows 8,000 in all.
LONGEST_NOTE = 7_000
# How long to wait for `mlflow run` to end before KILLED is restored.
EXIT_SECONDS = 60


def unopened_run() -> str | None:
    """Return the id of the run that `mlflow run` created and that nobody has opened yet."""
    return os.environ.get(VARIABLE)


def refuse(run_id: str, entry_point: str, message: str) -> None:
    """Say in the run why its entry point did not start; `mlflow run` itself sets it to FAILED."""
    from mlflow import MlflowClient

    client = MlflowClient()
    client.set_tag(run_id, FAILURE_TAG, message)
    client.update_run(run_id, name=f"{entry_point}, refused")


def describe(run_id: str, entry_point: str, printed: str) -> None:
    """Name the run after its entry point, unless a person has named it, and say what it printed."""
    from mlflow import MlflowClient
    from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

    client = MlflowClient()
    client.set_tag(run_id, MLFLOW_RUN_NOTE, f"```text\n{printed}\n```\n")
    if is_generated(client.get_run(run_id).info.run_name or ""):
        client.update_run(run_id, name=entry_point)


def is_generated(name: str) -> bool:
    """Return whether MLflow made up the name of a run, such as bold-shrew-123."""
    from mlflow.utils import name_utils

    words = re.fullmatch(r"([a-z]+)-([a-z]+)-\d*", name)
    return not name or (
        words is not None
        and words[1] in name_utils._GENERATOR_PREDICATES
        and words[2] in name_utils._GENERATOR_NOUNS
    )


def restore_killed_later(run_id: str) -> None:
    """Start a process that outlives `mlflow run`, the parent of this one, and restores KILLED.

    When its entry point is interrupted, `mlflow run` sets the run to FAILED, whatever status the
    entry point has set: it means to check first, but compares the status, a string, with integers
    (mlflow 3.17, `mlflow.projects._maybe_set_run_terminated`).
    """
    parent = psutil.Process(os.getppid())
    if "TORCHELASTIC_RUN_ID" in os.environ:  # by a process that `mlflow run` started
        parent = parent.parent() or parent
    subprocess.Popen(
        [sys.executable, "-m", __name__, run_id, str(parent.pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _restore_killed(run_id: str, launcher_pid: int) -> None:
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        psutil.Process(launcher_pid).wait(EXIT_SECONDS)

    from mlflow import MlflowClient
    from mlflow.entities import RunStatus

    client = MlflowClient()
    # The run may have been resumed in the meantime, or have finished at the last moment.
    if client.get_run(run_id).info.status == RunStatus.to_string(RunStatus.FAILED):
        client.set_tag(run_id, FAILURE_TAG, INTERRUPTED)
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))


if __name__ == "__main__":
    _restore_killed(sys.argv[1], int(sys.argv[2]))
