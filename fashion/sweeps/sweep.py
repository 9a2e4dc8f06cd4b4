"""A sweep as an MLflow run: its trials are its children, and it can go on after it was stopped."""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from fashion.data.dataset import FashionMNIST
from fashion.files import replacing
from fashion.settings.experiment import Experiment
from fashion.sweeps import report, tuner
from fashion.sweeps.plan import Plan, Space
from fashion.sweeps.trials import Outcome
from fashion.sweeps.tuner import Resolve
from fashion.tracking import checkpoint, runs, store
from fashion.tracking.checkpoint import CheckpointError

# What is kept of an unfinished sweep, beside Ray's own state.
KEPT = "sweep.json"


def unfinished(run_id: str) -> str:
    """Return the id of a sweep to go on with.

    Args:
        run_id: its own, or "latest" for the one that this machine was at last.

    Raises:
        CheckpointError: there is no such sweep here.
        TrackingError: the tracking store does not answer.
    """
    kept = [known for known in checkpoint.unfinished() if _path(known).is_file()]
    with store.refusals(store.START_IT), store.single_attempt():
        for known in kept:
            if run_id in (known, "latest") and runs.present(known):
                return known
    raise CheckpointError(f"this machine has no unfinished sweep of this store: {run_id}")


def kept(run_id: str) -> dict[str, Any]:
    """Return the options that an unfinished sweep was started with."""
    return json.loads(_path(run_id).read_text(encoding="utf-8"))


def _path(run_id: str) -> Path:
    return checkpoint.folder(run_id) / KEPT


def run(
    run_id: str,
    options: Mapping[str, Any],
    space: Space,
    plan: Plan,
    dataset: FashionMNIST,
    val_size: int,
    storage: str = "",
    resolve: Resolve = Experiment.from_options,
) -> tuple[str, Outcome]:
    """Search, as a new run or as one that was stopped.

    Args:
        run_id: the run to go on with, or "".
        options: what `kept` shall return of it.
        space: what to search.
        plan: how.
        dataset: the verified dataset. Trials see none of its test images.
        val_size: number of training images that trials are compared on and not trained on.
        storage: a folder that every node sees, or an address that Ray understands, to keep the
            state of the sweep in; without one, with the other unfinished runs of this machine.
        resolve: turns a configuration into what to train.

    Returns:
        The id of the finished run, and the best trial.

    Raises:
        SweepError: there is no Ray cluster, or no trial got through an epoch.
        TrackingError: the tracking store refuses; what trials have found is kept.
        CheckpointError: another process is at it.
        FileError: nothing can be kept here.
    """
    training, validation = dataset.split(val_size)
    assert validation is not None
    with (
        tuner.cluster(),
        checkpoint.held(run_id) if run_id else nullcontext(),
        runs.running(run_id or None, name="sweep") as parent,
    ):
        if run_id:
            runs.adopt(run_id)
        else:
            _begin(parent, options, space, plan, val_size)
        run_id = parent.info.run_id
        place = storage or str(checkpoint.folder(run_id).parent)
        try:
            outcomes = tuner.run(parent, space, plan, training, validation, place, resolve)
        except BaseException:
            print(f"Stopped: go on by -P resume={run_id}", file=sys.stderr)
            raise
        best = report.best(outcomes)
        with store.refusals(f"nothing is lost: go on by -P resume={run_id}"):
            _log(outcomes, best, space)
    return run_id, best


def _begin(
    parent: Run, options: Mapping[str, Any], space: Space, plan: Plan, val_size: int
) -> None:
    with replacing(_path(parent.info.run_id)) as path:
        path.write_text(json.dumps(dict(options)), encoding="utf-8")
    params = {**asdict(plan), "val_size": val_size}
    with store.refusals(store.START_IT):
        # `mlflow run` has logged those of its entry point.
        mlflow.log_params({key: params[key] for key in params.keys() - parent.data.params.keys()})
        mlflow.log_text(space.text, "space.yaml")


def _log(outcomes: Sequence[Outcome], best: Outcome, space: Space) -> None:
    mlflow.log_text(report.table(outcomes, space).to_csv(index=False), "trials.csv")
    mlflow.log_text(f"{report.command(best.config)}\n", "best.txt")
    for name, figure in report.figures(outcomes, space).items():
        mlflow.log_figure(figure, name)
    mlflow.log_metrics(
        {
            **best.metrics,
            "trials_finished": sum(
                not outcome.stopped for outcome in outcomes if not outcome.failure
            ),
            "trials_stopped_early": sum(outcome.stopped for outcome in outcomes),
            "trials_failed": sum(outcome.failure is not None for outcome in outcomes),
        }
    )
    mlflow.set_tag("best_trial", best.run_id)
