"""Open and close MLflow runs as FINISHED, FAILED or KILLED."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.environment_variables import MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_PARENT_RUN_ID,
    MLFLOW_PROJECT_ENTRY_POINT,
    MLFLOW_SOURCE_NAME,
)

from fashion import advice
from fashion.errors import TrackingError
from fashion.settings.tags import FAILURE_TAG, MODEL_TAG, TRIAL_TAG
from fashion.tracking import checkpoint
from fashion.tracking.launcher import (
    INTERRUPTED,
    VARIABLE,
    is_generated,
    restore_killed_later,
    unopened_run,
)
from fashion.tracking.store import (
    START_IT,
    environment,
    reason,
    refusals,
    single_attempt,
    without_credentials,
)

# Tag with the colour of the run in the UI's charts.
COLOR_TAG = "mlflow.runColor"


@contextmanager
def running(
    run_id: str | None = None,
    name: str | None = None,
    tags: Mapping[str, str] | None = None,
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
        tags: tags to set.
        nested: make the run a child of the active one.
        system_metrics: sample CPU, memory and network use during the run.

    Raises:
        TrackingError: the tracking store cannot be used.
        FileError: the folder for checkpoints cannot be written.
    """
    checkpoint.prepare()
    launcher_run_id = unopened_run()
    with refusals(START_IT):
        if not run_id and launcher_run_id:
            name = _unused(launcher_run_id, name)
        start = partial(
            mlflow.start_run,
            run_id=run_id,
            run_name=name,
            tags=dict(tags) if tags else None,
            nested=nested,
            log_system_metrics=system_metrics,
        )
        try:
            run = start()
        except MlflowException as error:
            # MLflow checks that the experiment exists before it creates it; another process may
            # have created it in between.
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            run = start()
        # Of the attempt before: a run that is resumed has not failed.
        if FAILURE_TAG in run.data.tags:
            MlflowClient().delete_tag(run.info.run_id, FAILURE_TAG)
    opened, client = run.info.run_id, MlflowClient()
    try:
        _hide_source_credentials(run)
        if run_id:
            yield run
        else:
            with checkpoint.held(opened):
                yield run
        with refusals(f"its results are saved; log them with {advice.command('replay')}"):
            _end(opened, RunStatus.FINISHED)
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        with suppress(Exception), single_attempt():
            client.set_tag(opened, FAILURE_TAG, INTERRUPTED if killed else reason(error))
        with suppress(Exception), single_attempt():
            _end(opened, RunStatus.KILLED if killed else RunStatus.FAILED)
            if killed and opened == launcher_run_id:
                restore_killed_later(opened)
        if checkpoint.is_empty(opened):
            checkpoint.forget(opened)
        raise
    checkpoint.forget(opened)


def _unused(run_id: str, name: str | None) -> str | None:
    """Return the name for the run that `mlflow run` created: its own, if a person chose one.

    Raises:
        TrackingError: the run has been used already.
    """
    run = MlflowClient().get_run(run_id)
    running = run.info.status == RunStatus.to_string(RunStatus.RUNNING)
    if not running or run.data.metrics or MODEL_TAG in run.data.tags:
        raise TrackingError(
            f"run {run_id} has been used already ({run.info.status}): unset MLFLOW_RUN_ID, and omit"
            " --run-id"
        )
    return name if is_generated(run.info.run_name or "") else run.info.run_name


def _end(run_id: str, status: int) -> None:
    """Set a run's final status by its own id, whatever run MLflow holds to be active.

    MLflow would print the run's address, and fail where the terminal cannot show its pictograms.
    """
    name = RunStatus.to_string(status)
    with environment({MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.name: "true"}):
        active = mlflow.active_run()
        if active is not None and active.info.run_id == run_id:
            mlflow.end_run(name)
        else:
            MlflowClient().set_terminated(run_id, name)


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
    launcher_run_id = unopened_run()
    if launcher_run_id:
        MlflowClient().set_tag(launcher_run_id, MLFLOW_PARENT_RUN_ID, run_id)
        # MLflow would reopen it as the next run that this process starts.
        del os.environ[VARIABLE]


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
                    _end(each, RunStatus.KILLED)
                    closed.append(each)
            if run is not None and checkpoint.is_empty(run_id):
                checkpoint.forget(run_id)
    return closed


def close(run_id: str) -> None:
    """Mark a RUNNING run as KILLED, whatever its process does.

    Raises:
        TrackingError: the tracking store has no such run, or it is not RUNNING.
        CheckpointError: a process on this machine uses it.
    """
    with refusals(START_IT):
        run = present(run_id)
    if run is None:
        raise TrackingError(f"this tracking store has no run {run_id}")
    if run.info.status != RunStatus.to_string(RunStatus.RUNNING):
        raise TrackingError(f"run {run_id} is not RUNNING but {run.info.status}")
    with checkpoint.held(run_id), refusals(START_IT):
        MlflowClient().set_tag(run_id, FAILURE_TAG, "closed by hand")
        _end(run_id, RunStatus.KILLED)
    if checkpoint.is_empty(run_id):
        checkpoint.forget(run_id)


def unstarted() -> list[str]:
    """Return the RUNNING runs that `mlflow run` has opened and that no entry point has begun.

    Either their environment is being built, or that has failed. They may be another machine's.
    """
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="attributes.status = 'RUNNING'",
        output_format="list",
    )
    return [
        run.info.run_id
        for run in found
        if MLFLOW_PROJECT_ENTRY_POINT in run.data.tags
        and not run.data.tags.keys() & {MODEL_TAG, MLFLOW_PARENT_RUN_ID}
        and not run.data.metrics
        and run.info.run_id != unopened_run()
        and not checkpoint.folder(run.info.run_id).exists()
    ]


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
        MlflowClient().set_tag(run.info.run_id, MLFLOW_SOURCE_NAME, without_credentials(source))
