"""MLflow runs opened and closed: each ends with the status it deserves, whatever happens to it."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_RUN_ID,
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
)
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion import aftermath, checkpoint
from fashion.errors import TrackingError

# The tag that says why a run did not finish.
FAILURE_TAG = "failure"
START_IT = "start it, or set MLFLOW_TRACKING_URI"


def connect() -> None:
    """Check that the tracking store answers, so that nothing is trained in vain.

    A database that does not exist yet is created.

    Raises:
        TrackingError: it does not answer, or refuses.
    """
    with refusals(START_IT), single_attempt():
        mlflow.search_experiments(max_results=1)


@contextmanager
def refusals(remedy: str) -> Iterator[None]:
    """Turn whatever the tracking store raises in the block into a TrackingError of one line."""
    try:
        yield
    except Exception as error:  # every store raises errors of its own: requests', SQLAlchemy's, ...
        store = without_credentials(mlflow.get_tracking_uri())
        raise TrackingError(
            f"the tracking store {store} cannot be used ({reason(error)}): {remedy}"
        ) from error


@contextmanager
def single_attempt() -> Iterator[None]:
    """Make MLflow's HTTP client answer at once instead of retrying for minutes."""
    limits = {MLFLOW_HTTP_REQUEST_MAX_RETRIES.name: "0", MLFLOW_HTTP_REQUEST_TIMEOUT.name: "10"}
    with _environment(limits):
        yield


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
    with refusals(START_IT):
        run = mlflow.start_run(
            run_id=run_id, run_name=name, nested=nested, log_system_metrics=system_metrics
        )
    try:
        if run_id:
            yield run
        else:
            with checkpoint.held(run.info.run_id):
                yield run
        with refusals("its results are kept; log them by mlflow run . -e replay"), _quiet():
            mlflow.end_run()
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        with suppress(Exception), single_attempt():
            mlflow.set_tag(FAILURE_TAG, "interrupted" if killed else reason(error))
        with suppress(Exception), single_attempt(), _quiet():
            mlflow.end_run(RunStatus.to_string(RunStatus.KILLED if killed else RunStatus.FAILED))
            if killed and run.info.run_id == of_mlflow_run:
                aftermath.leave_behind(of_mlflow_run)
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
                MlflowClient().set_tag(run_id, FAILURE_TAG, "its process died")
                MlflowClient().set_terminated(run_id, RunStatus.to_string(RunStatus.KILLED))
                closed.append(run_id)
    return closed


def reason(error: BaseException) -> str:
    """Return an error in one line, without credentials."""
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return without_credentials(line)[:160]


def without_credentials(text: str) -> str:
    """Replace the name and password in each URL."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow from printing the run's address: credentials of the server are part of it."""
    with _environment({MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT.name: "true"}):
        yield


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    saved = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
