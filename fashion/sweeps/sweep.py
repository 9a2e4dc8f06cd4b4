"""Run a sweep as an MLflow run with its trials as children, and resume interrupted sweeps."""

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Run

from fashion import advice
from fashion.data.dataset import Dataset
from fashion.files import replacing
from fashion.settings.experiment import Experiment
from fashion.settings.task import FASHION_MNIST
from fashion.sweeps import report, tuner
from fashion.sweeps.plan import Plan, Space
from fashion.sweeps.trials import TrialResult
from fashion.sweeps.tuner import Resolve
from fashion.tracking import checkpoint, overview, resumption, runs, store
from fashion.tracking.checkpoint import CheckpointError


def unfinished(run_id: str) -> str:
    """Return the id of a sweep that can be resumed.

    Args:
        run_id: id of the sweep's run, or "latest" for the last sweep on this machine.

    Raises:
        CheckpointError: this machine has no such sweep.
        TrackingError: the tracking store is unreachable.
    """
    candidates = [known for known in checkpoint.unfinished() if _path(known).is_file()]
    with store.refusals(store.START_IT), store.single_attempt():
        for known in candidates:
            if run_id in (known, "latest") and runs.present(known):
                return known
    raise CheckpointError(f"this machine has no unfinished sweep of this tracking store: {run_id}")


def load_options(run_id: str) -> dict[str, Any]:
    """Return the options that an unfinished sweep was started with."""
    return json.loads(_path(run_id).read_text(encoding="utf-8"))


def _path(run_id: str) -> Path:
    return checkpoint.folder(run_id) / checkpoint.SWEEP


def run(
    run_id: str,
    options: Mapping[str, Any],
    space: Space,
    plan: Plan,
    dataset: Dataset,
    val_size: int,
    storage: str = "",
    resolve: Resolve = Experiment.from_options,
) -> tuple[str, TrialResult]:
    """Run a new sweep, or resume an interrupted one.

    Args:
        run_id: the run to resume, or "" for a new one.
        options: the command's options, saved for `load_options`.
        space: the search space.
        plan: how to search.
        dataset: the verified dataset; trials do not get its test images.
        val_size: number of training images held out to compare trials on.
        storage: absolute path of a folder visible to all nodes, or an address that Ray supports,
            for the state of the sweep; "" for the folder of this machine's unfinished runs.
        resolve: converts a configuration to an experiment.

    Returns:
        The id of the finished run, and the best trial.

    Raises:
        SweepError: as for `tuner.cluster`, or all trials failed.
        TrackingError: the tracking store cannot be used; the trials' results are saved.
        CheckpointError: the sweep is in use by another process.
        FileError: the state of the sweep cannot be written.
    """
    training, validation = dataset.split(val_size)
    assert validation is not None
    with (
        tuner.cluster(plan),
        checkpoint.held(run_id) if run_id else nullcontext(),
        runs.running(run_id or None, name="sweep") as parent,
    ):
        if run_id:
            runs.nest_launcher_run(run_id)
        else:
            _begin(parent, options, space, plan, val_size)
        run_id = parent.info.run_id
        storage = storage or str(checkpoint.folder(run_id).parent.absolute())
        try:
            results = tuner.run(parent, space, plan, training, validation, storage, resolve)
        except BaseException:
            resumption.print_advice("sweep", run_id)
            raise
        best = report.best(results, plan.metric)
        again = advice.command("sweep", resume=run_id)
        with store.refusals(f"the results are saved; continue with {again}"):
            _log(results, best, space, plan.metric)
            overview.describe_sweep(
                best.run_id,
                best.name,
                best.metrics[plan.metric],
                plan.metric,
                report.command(best.config),
            )
    return run_id, best


def _begin(
    parent: Run, options: Mapping[str, Any], space: Space, plan: Plan, val_size: int
) -> None:
    with replacing(_path(parent.info.run_id)) as path:
        path.write_text(json.dumps(dict(options)), encoding="utf-8")
    data = space.dimensions.get("data", FASHION_MNIST.name)
    params = {**asdict(plan), "val_size": val_size, "data": data}
    with store.refusals(store.START_IT):
        # `mlflow run` has already logged the entry point's parameters.
        mlflow.log_params({key: params[key] for key in params.keys() - parent.data.params.keys()})
        mlflow.log_text(space.text, "space.yaml")


def _log(results: Sequence[TrialResult], best: TrialResult, space: Space, metric: str) -> None:
    mlflow.log_text(report.table(results, space, metric).to_csv(index=False), "trials.csv")
    mlflow.log_text(f"{report.command(best.config)}\n", "best.txt")
    for name, figure in report.figures(results, space, metric).items():
        mlflow.log_figure(figure, name)
    mlflow.log_metrics(
        {
            **best.metrics,
            "trials_finished": sum(not result.stopped for result in results if not result.failure),
            "trials_stopped_early": sum(result.stopped for result in results),
            "trials_failed": sum(result.failure is not None for result in results),
        }
    )
    mlflow.set_tag("best_trial", best.name)
