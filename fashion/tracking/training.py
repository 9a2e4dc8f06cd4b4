"""Train models as MLflow runs, and go on with runs that were stopped."""

import logging
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from torch import nn

from fashion.analysis import summary, tables
from fashion.data.dataset import FashionMNIST, Subset
from fashion.errors import SettingError
from fashion.settings.experiment import Experiment, Recipe
from fashion.tracking import checkpoint, records, runs, store
from fashion.tracking.checkpoint import CheckpointError
from fashion.tracking.models import log_model
from fashion.tracking.records import _log_lineage, _log_params, _log_per_class
from fashion.training import distributed, evaluation, loop
from fashion.training.build import build

# The tag that tells a training run, and of which model, from the other runs of an experiment.
MODEL_TAG = "model"
REPLAY = "the trained model is kept; log it by mlflow run . -e replay"

logger = logging.getLogger(__name__)


def train(
    experiment: Experiment,
    dataset: FashionMNIST,
    *,
    nested: bool = False,
    system_metrics: bool = False,
) -> str:
    """Train one model and log everything about it as one MLflow run.

    Of several processes the first calls this, the others `train_as_worker`. A checkpoint is
    written after each epoch, for `resume`. When the tracking store goes away training goes on,
    and what there is to log waits for it.

    Args:
        experiment: what to train.
        dataset: the verified dataset.
        nested: make the run a child of the active one.
        system_metrics: sample CPU, memory and network while the run lasts.

    Returns:
        The id of the finished run.

    Raises:
        TrackingError: the tracking store refuses, at the start or, for as long as MLflow tries, at
            the end; the trained model is kept for `replay` then.
        FileError: a checkpoint cannot be written.
    """
    digest = dataset.split(experiment.val_size)[0].digest
    model, params = build(experiment, digest)
    with runs.running(name=experiment.model, nested=nested, system_metrics=system_metrics) as run:
        record = {
            "experiment": experiment.to_dict(),
            "params": params,
            "epochs": [],
            "trained": False,
            "state": None,
        }
        checkpoint.save(run.info.run_id, record)
        _complete(run, record, experiment, model, dataset)
    return run.info.run_id


def train_seeds(
    repetitions: Sequence[Experiment], dataset: FashionMNIST, system_metrics: bool = False
) -> tuple[str, dict[str, tuple[float, float]]]:
    """Train experiments that differ in their seed, as children of one run.

    Returns:
        The id of the parent, and (mean, standard deviation) by metric, which it logs.

    Raises:
        TrackingError, FileError: as for `train`.
    """
    name = f"{repetitions[0].model}, {len(repetitions)} seeds"
    with runs.group(name, system_metrics) as parent:
        children = []
        for repetition in repetitions:
            print(f"Seed {repetition.recipe.seed}", flush=True)
            children.append(train(repetition, dataset, nested=True))
        return parent, records.log_spread(children)


def train_as_worker(dataset: FashionMNIST) -> None:
    """Train what the first process does by `train` or `resume`: no MLflow run, no output."""
    record = distributed.share(None)
    experiment = _experiment(record)
    training, validation = dataset.split(experiment.val_size)
    model, _ = build(experiment, training.digest)
    for _ in loop.train(model, training, experiment.recipe, validation, record["state"]):
        pass


def resume(
    run_id: str,
    dataset: FashionMNIST,
    given: Mapping[str, Any] | None = None,
    *,
    system_metrics: bool = False,
) -> str:
    """Go on with a run from its last checkpoint, so that it ends as if it had never stopped.

    Args:
        run_id: its id, or "latest" for the one that this machine was at last.
        dataset: the verified dataset.
        given: settings that must be the run's own.
        system_metrics: sample CPU, memory and network while the run lasts.

    Returns:
        The id of the finished run.

    Raises:
        CheckpointError: there is nothing of it here, another process is at it, or the settings, the
            machine or torch are others than those it was started with.
        TrackingError, FileError: as for `train`.
    """
    with store.refusals(store.START_IT), store.single_attempt():
        if run_id == "latest":
            kept = filter(checkpoint.exists, checkpoint.unfinished())
            run_id = next(filter(runs.present, kept), run_id)
        known = run_id != "latest" and runs.present(run_id)
    if not known:
        raise CheckpointError(f"this machine has no unfinished run of this store: {run_id}")
    with checkpoint.held(run_id):
        record = checkpoint.load(run_id)
        experiment = _experiment(record)
        _refuse_changes(run_id, experiment.to_dict(), given or {})
        model, params = build(experiment, dataset.split(experiment.val_size)[0].digest)
        if not record["trained"]:
            _refuse_changes(run_id, record["params"], params)
        with runs.running(run_id, system_metrics=system_metrics) as run:
            runs.adopt(run_id)
            _complete(run, record, experiment, model, dataset)
    return run_id


def replay(dataset: FashionMNIST) -> Iterator[tuple[str, str]]:
    """Log the runs that were trained but could not be logged; yield each run's id and outcome.

    Raises:
        TrackingError: the tracking store still refuses.
    """
    for run_id in filter(checkpoint.exists, checkpoint.unfinished()):
        try:
            with store.refusals(store.START_IT), store.single_attempt():
                known = runs.present(run_id)
            if not known:
                outcome = "not in this tracking store"
            elif not checkpoint.load(run_id)["trained"]:
                outcome = f"not trained to the end: go on with -e train -P resume={run_id}"
            else:
                resume(run_id, dataset)
                outcome = "logged"
        except CheckpointError as error:
            outcome = str(error)
        yield run_id, outcome


def _experiment(record: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a checkpoint was made for.

    Raises:
        CheckpointError: another version of this project made it.
    """
    try:
        return Experiment.from_options(record["experiment"])
    except SettingError as error:
        raise CheckpointError(f"another version of this project began the run ({error})") from error


def _refuse_changes(run_id: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changes = [
        f"{name} was {before.get(name)}, is {value}"
        for name, value in now.items()
        # Another patch of Python computes the same.
        if before.get(name) != value and name != "python_version"
    ]
    if changes:
        raise CheckpointError(f"run {run_id} cannot go on with changes: {'; '.join(changes)}")


def _complete(
    run: Run,
    record: dict[str, Any],
    experiment: Experiment,
    model: nn.Module,
    dataset: FashionMNIST,
) -> None:
    """Do what is left of a run. What has been logged already does not change when it is again."""
    recipe = experiment.recipe
    training, validation = dataset.split(experiment.val_size)
    with store.refusals(store.START_IT):
        mlflow.set_tag(MODEL_TAG, experiment.model)
        _log_params(run, record["params"])
        _log_lineage(training, validation, dataset.test)
    try:
        logged = _fit(run, record, model, training, validation, recipe)
    except KeyboardInterrupt:
        print(f"Stopped: go on by -P resume={run.info.run_id}", file=sys.stderr)
        raise

    epochs = record["epochs"]
    history = pd.DataFrame([epoch["metrics"] for epoch in epochs], range(1, len(epochs) + 1))
    kept = history.index[-1]
    if recipe.patience:
        kept = history["val_loss"].fillna(math.inf).idxmin()
    train_seconds = sum(epoch["seconds"] for epoch in epochs)
    # The test is of what is stored: the model on the CPU with PyTorch's kernels, where the rounding
    # of a GPU's or of our own is gone.
    model.to("cpu")
    test = evaluation.evaluate(model, dataset.test)
    print(f"test loss {test.loss:.4f}, accuracy {test.accuracy:.2%}", flush=True)
    calibration = tables.calibration(dataset.test.labels, test.logits)
    final = {
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "test_ece": tables.expected_calibration_error(calibration),
        "train_seconds": train_seconds,
        "images_per_second": len(training) * len(epochs) / train_seconds,
    }
    extra = _tta(model, validation, dataset.test) if experiment.tta else {}
    metrics = epochs[kept - 1]["metrics"]
    if recipe.patience:
        # What a run says of itself is what it logged last: that of the weights it kept.
        extra |= {**metrics, "best_epoch": kept}
    at = {"step": history.index[-1], "timestamp": epochs[-1]["timestamp"] + 1}
    with tempfile.TemporaryDirectory() as folder:
        pairs = summary.write_files(
            Path(folder), experiment.model, recipe.seed, history, dataset.test, test, calibration
        )
        with store.refusals(REPLAY):
            _log_epochs(epochs, logged)
            model_id = log_model(run, model, dataset.test, test)
            mlflow.log_metrics(final, model_id=model_id, timestamp=at["timestamp"])
            mlflow.log_metrics(extra, **at)
            mlflow.log_artifacts(folder)
            _log_per_class(run, dataset.test, test)
            text = summary.note(
                run.info.run_id,
                experiment.model,
                record["params"]["num_parameters"],
                recipe,
                metrics | final,
                pairs,
            )
            mlflow.set_tag(MLFLOW_RUN_NOTE, text)


def _fit(
    run: Run,
    record: dict[str, Any],
    model: nn.Module,
    training: Subset,
    validation: Subset | None,
    recipe: Recipe,
) -> int:
    """Train from where `record` is to the end, keeping and logging each epoch.

    Returns:
        How many epochs the tracking store has taken.
    """
    epochs, logged = record["epochs"], 0
    if epochs:
        print(f"Going on with run {run.info.run_id} after epoch {len(epochs)}", flush=True)
    distributed.share({key: record[key] for key in ("experiment", "state")})
    for epoch in loop.train(model, training, recipe, validation, record["state"]):
        epochs.append(epoch.summary())
        record["state"] = epoch.state
        # First kept, then logged: what has been logged will not be trained again.
        checkpoint.save(run.info.run_id, record)
        line = summary.progress(epoch.number, recipe.epochs, epoch.metrics, epoch.seconds)
        print(line, flush=True)
        try:
            with store.single_attempt():
                logged = _log_epochs(epochs, logged)
        except Exception as error:  # as in runs.refusals
            logger.warning(
                "The tracking store does not answer (%s): training goes on, %d epochs wait for it",
                store.reason(error),
                len(epochs) - logged,
            )
    record["trained"] = True
    checkpoint.save(run.info.run_id, record)
    return logged


def _log_epochs(epochs: Sequence[Mapping[str, Any]], logged: int) -> int:
    """Log the metrics of all epochs but the first `logged` ones; return how many epochs there are.

    A metric that the store has with the same time is not stored twice.
    """
    for number, epoch in enumerate(epochs[logged:], logged + 1):
        mlflow.log_metrics(epoch["metrics"], step=number, timestamp=epoch["timestamp"])
    return len(epochs)


def _tta(model: nn.Module, validation: Subset | None, test: Subset) -> dict[str, float]:
    metrics = {}
    for name, subset in (("val", validation), ("test", test)):
        if subset is not None:
            answers = evaluation.evaluate(model, subset, tta=True)
            metrics[f"{name}_accuracy_tta"] = answers.accuracy
            metrics[f"{name}_loss_tta"] = answers.loss
    return metrics
