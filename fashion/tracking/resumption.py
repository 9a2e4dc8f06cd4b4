"""Which interrupted runs can be resumed, under which conditions, and by which command."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from fashion import advice
from fashion.errors import SettingError
from fashion.settings.experiment import DEFAULTS, Experiment
from fashion.tracking import checkpoint, runs, store
from fashion.tracking.checkpoint import CheckpointError
from fashion.tracking.environment import differences
from fashion.training import distributed


def unfinished(run_id: str) -> str:
    """Return the id of the run to resume: the parent, if the run is part of an unfinished group.

    Args:
        run_id: id of a run, or "latest" for the last one on this machine.

    Raises:
        CheckpointError: this machine has no such run.
        TrackingError: the tracking store cannot be used.
    """
    known = [run_id] if run_id != "latest" else checkpoint.unfinished()
    with store.refusals(store.START_IT), store.single_attempt():
        for each in known:
            found = runs.present(each)
            parent = found.data.tags.get(MLFLOW_PARENT_RUN_ID) if found else None
            if parent and checkpoint.is_group(parent) and runs.present(parent):
                return parent
            if found and (checkpoint.exists(each) or checkpoint.is_group(each)):
                return each
    raise _unknown(run_id)


def check_known(run_id: str) -> None:
    """Check that the tracking store has a run.

    Raises:
        CheckpointError: it has not.
        TrackingError: the tracking store cannot be used.
    """
    if not is_known(run_id):
        raise _unknown(run_id)


def is_known(run_id: str) -> bool:
    """Return whether the tracking store has a run; raises TrackingError as `check_known`."""
    with store.refusals(store.START_IT), store.single_attempt():
        return runs.present(run_id) is not None


def _unknown(run_id: str) -> CheckpointError:
    return CheckpointError(f"this machine has no unfinished run of this tracking store: {run_id}")


def experiment_of(settings: Mapping[str, Any]) -> Experiment:
    """Return the experiment with the settings that a checkpoint holds.

    Raises:
        CheckpointError: another version of this project wrote it.
    """
    try:
        return Experiment.from_options(DEFAULTS | dict(settings))
    except SettingError as error:
        raise CheckpointError(
            f"the run was started with another version of this project ({error})"
        ) from error


def refuse_changes(run_id: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise CheckpointError with what differs from `before` in `now`, if anything does."""
    changes = [
        f"{name} was {before.get(name)}, is {value}"
        for name, value in now.items()
        # The Python version does not change the results.
        if before.get(name) != value and name != "python_version"
    ]
    if changes:
        raise CheckpointError(f"run {run_id} cannot be resumed with changes: {'; '.join(changes)}")


def accepted_changes(
    run_id: str,
    before: Mapping[str, Any] | None,
    now: Mapping[str, Any],
    after: str,
    allowed: bool,
) -> list[str]:
    """Return what has changed around a run, if that is allowed, with when.

    Args:
        run_id: the run.
        before, now: as for `environment.differences`.
        after: what had been trained before the changes.
        allowed: whether the user has allowed them.

    Raises:
        CheckpointError: something has changed, and that is not allowed.
    """
    changes = differences(before, now)
    if changes and not allowed:
        raise CheckpointError(
            f"run {run_id} would end with other bits: {'; '.join(changes)}. Undo that, or continue"
            " with --allow-changes (for mlflow run: -P allow_changes=true)"
        )
    return [f"after {after}: {each}" for each in changes]


def print_advice(entry_point: str, run_id: str) -> None:
    """Print the command that continues an interrupted run."""
    processes = distributed.world_size()
    several = {"nproc": processes} if processes > 1 else {}
    with suppress(OSError):  # the terminal may be closed
        sys.stdout.flush()  # a line that was interrupted comes first
        again = advice.command(entry_point, **several, resume=run_id)
        print(f"Interrupted; continue with {again}", file=sys.stderr)
