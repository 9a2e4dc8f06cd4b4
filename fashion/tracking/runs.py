"""MLflow runs opened and closed: each ends with the status it deserves, whatever happens to it."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.environment_variables import (
    MLFLOW_RUN_ID,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_SOURCE_NAME

from fashion.tracking import aftermath, checkpoint
from fashion.tracking.store import START_IT, reason, refusals, single_attempt, without_credentials

# The tag that says why a run did not finish.
FAILURE_TAG = "failure"
# The tag that says which of its sweep's trials a run is.
TRIAL_TAG = "trial"


@contextmanager
def running(
    run_id: str | None = None,
    name: str | None = None,
    nested: bool = False,
    system_metrics: bool = False,
) -> Iterator[Run]:
    """Open a run, or open one again, and close it when the block ends.

    It ends FINISHED; KILLED where the block was interrupted, by the keyboard or by a signal; and
    FAILED where it raised, with a tag that says why. What this machine keeps of it is deleted when
    it has finished. `mlflow run` has opened a run for its entry point: the first run that is
    opened here continues that one.

    Args:
        run_id: a run to open again, which the caller holds.
        name: of the run.
        nested: make the run a child of the active one.
        system_metrics: sample CPU, memory and network while the run lasts.

    Raises:
        TrackingError: the tracking store refuses.
        FileError: nothing can be kept on this machine.
    """
    checkpoint.prepare()
    of_mlflow_run = MLFLOW_RUN_ID.get()
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
            # MLflow looks whether the experiment exists before it makes it; another process may
            # have made it in between.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            run = start()
    try:
        _hide_credentials_of_the_source(run)
        if run_id:
            yield run
        else:
            with checkpoint.held(run.info.run_id):
                yield run
        with refusals("its results are kept; log them by mlflow run . -e replay"):
            mlflow.end_run()
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        with suppress(Exception), single_attempt():
            mlflow.set_tag(FAILURE_TAG, "interrupted" if killed else reason(error))
        with suppress(Exception), single_attempt():
            mlflow.end_run(RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED))
            if killed and run.info.run_id == of_mlflow_run:
                aftermath.leave_behind(of_mlflow_run)
        if checkpoint.is_empty(run.info.run_id):
            checkpoint.forget(run.info.run_id)
        raise
    checkpoint.forget(run.info.run_id)


@contextmanager
def group(name: str, system_metrics: bool = False) -> Iterator[str]:
    """Open a parent run for the training runs of one comparison; yields its id."""
    with running(name=name, system_metrics=system_metrics) as run:
        yield run.info.run_id


def present(run_id: str) -> Run | None:
    """Return a run, None where the tracking store does not have it or has it deleted."""
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def adopt(run_id: str) -> None:
    """Show the run that `mlflow run` opened for its entry point, if any, below another one."""
    own = MLFLOW_RUN_ID.get()
    if own:
        MlflowClient().set_tag(own, MLFLOW_PARENT_RUN_ID, run_id)


def close_stale() -> list[str]:
    """End the runs that say RUNNING though their process on this machine is gone.

    Returns:
        Their ids.
    """
    closed = []
    for run_id in checkpoint.unfinished():
        with suppress(checkpoint.CheckpointError), checkpoint.held(run_id):
            run = present(run_id)
            if run is not None and run.info.status == RunStatus.to_string(RunStatus.RUNNING):
                # A trial of a sweep has no process of its own here.
                for each in (run_id, *open_trials(run)):
                    MlflowClient().set_tag(each, FAILURE_TAG, "its process died")
                    MlflowClient().set_terminated(each, RunStatus.to_string(RunStatus.KILLED))
                    closed.append(each)
            if run is not None and checkpoint.is_empty(run_id):
                checkpoint.forget(run_id)
    return closed


def children(parent: Run, condition: str) -> list[Run]:
    """Return a run's children that meet a condition of MLflow's search."""
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
    """Return the ids of a sweep's trials that have not ended."""
    running = children(sweep, f"tags.`{TRIAL_TAG}` != '' AND attributes.status = 'RUNNING'")
    return [run.info.run_id for run in running]


def _hide_credentials_of_the_source(run: Run) -> None:
    """Of a project run from https://name:token@host/..., MLflow logs the whole address."""
    source = run.data.tags.get(MLFLOW_SOURCE_NAME, "")
    if without_credentials(source) != source:
        mlflow.set_tag(MLFLOW_SOURCE_NAME, without_credentials(source))
