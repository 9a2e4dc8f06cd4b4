"""Open and close MLflow runs as FINISHED, FAILED or KILLED.

`python -m fashion.tracking.runs RUN_ID PID` restores KILLED after `mlflow run` has overwritten it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import mlflow
import psutil
from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.environment_variables import MLFLOW_RUN_ID
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME

from fashion.tracking import checkpoint
from fashion.tracking.store import START_IT, reason, refusals, single_attempt, without_credentials
from fashion.training import distributed

# Tag with the reason why a run did not finish.
FAILURE_TAG = "failure"
# Tag with the id of the sweep's trial that a run belongs to.
TRIAL_TAG = "trial"
# How long to wait for `mlflow run` to end before KILLED is restored.
LAUNCHER_EXIT_SECONDS = 60


@contextmanager
def running(
    run_id: str | None = None,
    name: str | None = None,
    nested: bool = False,
    system_metrics: bool = False,
) -> Iterator[Run]:
    """Open or reopen a run and close it when the block ends.

    The run ends as FINISHED; as KILLED if the block was interrupted, by the keyboard or a signal;
    as FAILED if it raised, with the reason in a tag. The run's local folder is deleted once it has
    finished. `mlflow run` creates a run for its entry point: the first run opened here is that one.

    Args:
        run_id: run to reopen; the caller holds its lock.
        name: name of a new run.
        nested: make the run a child of the active one.
        system_metrics: sample CPU, memory and network use during the run.

    Raises:
        TrackingError: the tracking store cannot be used.
        FileError: the folder for checkpoints cannot be written.
    """
    checkpoint.prepare()
    launcher_run_id = MLFLOW_RUN_ID.get()
    start = partial(
        mlflow.start_run,
        run_id=run_id,
        run_name=name,
        nested=nested,
        log_system_metrics=system_metrics,
    )
    with refusals(START_IT):
        try:
            run = start()
        except MlflowException as error:
            # MLflow checks that the experiment exists before it creates it; another process may
            # have created it in between.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            run = start()
    try:
        _hide_source_credentials(run)
        if run_id:
            yield run
        else:
            with checkpoint.held(run.info.run_id):
                yield run
        with refusals("its results are saved; log them with mlflow run . -e replay"):
            mlflow.end_run()
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        with suppress(Exception), single_attempt():
            mlflow.set_tag(FAILURE_TAG, "interrupted" if killed else reason(error))
        with suppress(Exception), single_attempt():
            mlflow.end_run(RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED))
            if killed and run.info.run_id == launcher_run_id:
                _restore_killed_later(launcher_run_id)
        if checkpoint.is_empty(run.info.run_id):
            checkpoint.forget(run.info.run_id)
        raise
    checkpoint.forget(run.info.run_id)


@contextmanager
def group(name: str, system_metrics: bool = False) -> Iterator[str]:
    """Open a parent run for the training runs of one comparison; yield its id."""
    with running(name=name, system_metrics=system_metrics) as run:
        yield run.info.run_id


def present(run_id: str) -> Run | None:
    """Return a run, or None if the tracking store does not have it or it was deleted."""
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def nest_launcher_run(run_id: str) -> None:
    """Make the run that `mlflow run` created for its entry point, if any, a child of `run_id`."""
    launcher_run_id = MLFLOW_RUN_ID.get()
    if launcher_run_id:
        MlflowClient().set_tag(launcher_run_id, MLFLOW_PARENT_RUN_ID, run_id)


def close_stale() -> list[str]:
    """Mark as KILLED the RUNNING runs whose process on this machine has died.

    Returns:
        The ids of these runs.
    """
    closed = []
    for run_id in checkpoint.unfinished():
        with suppress(checkpoint.CheckpointError), checkpoint.held(run_id):
            run = present(run_id)
            if run is not None and run.info.status == RunStatus.to_string(RunStatus.RUNNING):
                # A sweep's trials have no folder of their own here.
                for each in (run_id, *open_trials(run)):
                    MlflowClient().set_tag(each, FAILURE_TAG, "its process died")
                    MlflowClient().set_terminated(each, RunStatus.to_string(RunStatus.KILLED))
                    closed.append(each)
            if run is not None and checkpoint.is_empty(run_id):
                checkpoint.forget(run_id)
    return closed


def children(parent: Run, condition: str) -> list[Run]:
    """Return a run's children that match a condition in MLflow's search syntax."""
    client, token = MlflowClient(), None
    found: list[Run] = []
    while True:
        page = client.search_runs(
            [parent.info.experiment_id],
            f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.info.run_id}' AND {condition}",
            page_token=token,
        )
        found += page
        token = page.token
        if not token:
            return found


def open_trials(sweep: Run) -> list[str]:
    """Return the run ids of a sweep's trials that have not ended."""
    running = children(sweep, f"tags.`{TRIAL_TAG}` != '' AND attributes.status = 'RUNNING'")
    return [run.info.run_id for run in running]


def _hide_source_credentials(run: Run) -> None:
    # MLflow logs the full address of a project that is run from https://name:token@host/...
    source = run.data.tags.get(MLFLOW_SOURCE_NAME, "")
    if without_credentials(source) != source:
        mlflow.set_tag(MLFLOW_SOURCE_NAME, without_credentials(source))


def _restore_killed_later(run_id: str) -> None:
    """Start a process that outlives `mlflow run`, the parent of this one, and restores KILLED.

    When its entry point is interrupted, `mlflow run` sets the run to FAILED, whatever status the
    entry point has set: it means to check first, but compares the status, a string, with integers
    (mlflow 3.17, `mlflow.projects._maybe_set_run_terminated`).
    """
    parent = psutil.Process(os.getppid())
    if distributed.is_launched():  # by a process that `mlflow run` started
        parent = parent.parent() or parent
    subprocess.Popen(
        [sys.executable, "-m", "fashion.tracking.runs", run_id, str(parent.pid)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _restore_killed(run_id: str, launcher_pid: int) -> None:
    with suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
        psutil.Process(launcher_pid).wait(LAUNCHER_EXIT_SECONDS)
    client = MlflowClient()
    # The run may have been resumed in the meantime.
    if client.get_run(run_id).info.status == RunStatus.to_string(RunStatus.FAILED):
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))


if __name__ == "__main__":
    _restore_killed(sys.argv[1], int(sys.argv[2]))
