"""Say KILLED once more after `mlflow run`: python -m fashion.tracking.aftermath RUN_ID PID

When its entry point has been interrupted, `mlflow run` marks the run FAILED, whatever the entry
point has marked it itself: it means to look first, but compares the status, a text, with numbers
(mlflow 3.17, `mlflow.projects._maybe_set_run_terminated`). So the last word is said here, in a
process that outlives it.
"""

import os
import subprocess
import sys
from contextlib import suppress

import psutil
from mlflow import MlflowClient
from mlflow.entities import RunStatus

from fashion.training import distributed

PATIENCE_SECONDS = 60


def leave_behind(run_id: str) -> None:
    """Start the process that waits for the end of `mlflow run`, this process's parent."""
    parent = psutil.Process(os.getppid())
    if distributed.is_launched():  # by a process that `mlflow run` started
        parent = parent.parent() or parent
    subprocess.Popen(
        [sys.executable, "-m", "fashion.tracking.aftermath", run_id, str(parent.pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def main(run_id: str, pid: int) -> None:
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        psutil.Process(pid).wait(PATIENCE_SECONDS)
    client = MlflowClient()
    # It may have been resumed in the meantime.
    if client.get_run(run_id).info.status == RunStatus.to_string(RunStatus.FAILED):
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
