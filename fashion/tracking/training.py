"""Train models as MLflow runs, and resume interrupted runs."""

import logging
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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

SETTINGS_ARTIFACT = "settings.yaml"
REPLAY = "the trained model is saved; log it with mlflow run . -e replay"

logger = logging.getLogger(__name__)


def train(
    experiment: Experiment,
    dataset: FashionMNIST,
    *,
    nested: bool = False,
    system_metrics: bool = False,
) -> str:
    """Train one model and log it as one MLflow run.

    With several processes, rank 0 calls this and the others call `train_as_worker`. A checkpoint
    is written after each epoch, for `resume`. If the tracking store becomes unreachable, training
    continues and the missing metrics are logged later.

    Args:
        experiment: what to train.
        dataset: the verified dataset.
        nested: make the run a child of the active one.
        system_metrics: sample CPU, memory and network use during the run.

    Returns:
        The id of the finished run.

    Raises:
        TrackingError: the tracking store cannot be used at the start, or at the end after all of
            MLflow's retries; the trained model is then saved for `replay`.
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
    """Train experiments that differ only in their seed, as children of one run.

    Returns:
        The id of the parent run, and {metric: (mean, standard deviation)}, as logged to it.

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
    """Take part in rank 0's `train` or `resume`, without an MLflow run and without output."""
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
    """Resume a run from its last checkpoint; it ends as if it had never been interrupted.

    Args:
        run_id: id of the run, or "latest" for the last one on this machine.
        dataset: the verified dataset.
        given: settings that must equal those of the run.
        system_metrics: sample CPU, memory and network use during the run.

    Returns:
        The id of the finished run.

    Raises:
        CheckpointError: the run has no checkpoint here, is in use by another process, or was
            started with other settings, another torch or on another kind of machine.
        TrackingError, FileError: as for `train`.
    """
    with store.refusals(store.START_IT), store.single_attempt():
        if run_id == "latest":
            candidates = filter(checkpoint.exists, checkpoint.unfinished())
            run_id = next(filter(runs.present, candidates), run_id)
        known = run_id != "latest" and runs.present(run_id)
    if not known:
        raise CheckpointError(
            f"this machine has no unfinished run of this tracking store: {run_id}"
        )
    with checkpoint.held(run_id):
        record = checkpoint.load(run_id)
        experiment = _experiment(record)
        _refuse_changes(run_id, experiment.to_dict(), given or {})
        model, params = build(experiment, dataset.split(experiment.val_size)[0].digest)
        if not record["trained"]:
            _refuse_changes(run_id, record["params"], params)
        with runs.running(run_id, system_metrics=system_metrics) as run:
            runs.nest_launcher_run(run_id)
            _complete(run, record, experiment, model, dataset)
    return run_id


def replay(dataset: FashionMNIST) -> Iterator[tuple[str, str]]:
    """Log the runs that were trained but could not be logged; yield each run's id and outcome.

    Raises:
        TrackingError: the tracking store still cannot be used.
    """
    for run_id in filter(checkpoint.exists, checkpoint.unfinished()):
        try:
            with store.refusals(store.START_IT), store.single_attempt():
                known = runs.present(run_id)
            if not known:
                outcome = "not in this tracking store"
            elif not checkpoint.load(run_id)["trained"]:
                outcome = f"training unfinished; continue with -e train -P resume={run_id}"
            else:
                resume(run_id, dataset)
                outcome = "logged"
        except CheckpointError as error:
            outcome = str(error)
        yield run_id, outcome


def _experiment(record: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a checkpoint belongs to.

    Raises:
        CheckpointError: another version of this project wrote it.
    """
    try:
        return Experiment.from_options(record["experiment"])
    except SettingError as error:
        raise CheckpointError(
            f"the run was started with another version of this project ({error})"
        ) from error


def _refuse_changes(run_id: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changes = [
        f"{name} was {before.get(name)}, is {value}"
        for name, value in now.items()
        # The Python version does not change the results.
        if before.get(name) != value and name != "python_version"
    ]
    if changes:
        raise CheckpointError(f"run {run_id} cannot be resumed with changes: {'; '.join(changes)}")


def _complete(
    run: Run,
    record: dict[str, Any],
    experiment: Experiment,
    model: nn.Module,
    dataset: FashionMNIST,
) -> None:
    """Do the remaining work of a run. Logging anything a second time changes nothing."""
    recipe = experiment.recipe
    training, validation = dataset.split(experiment.val_size)
    with store.refusals(store.START_IT):
        mlflow.set_tag(runs.MODEL_TAG, experiment.model)
        _log_params(run, record["params"])
        _log_lineage(training, validation, dataset.test)
    # Before training: a store of artifacts that refuses files would refuse the model, hours later.
    with store.refusals("its artifacts cannot be stored"):
        mlflow.log_dict(record["experiment"], SETTINGS_ARTIFACT)
    try:
        logged = _fit(run, record, model, training, validation, recipe)
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be closed
            print(f"Interrupted; continue with -P resume={run.info.run_id}", file=sys.stderr)
        raise

    epochs = record["epochs"]
    history = pd.DataFrame([epoch["metrics"] for epoch in epochs], range(1, len(epochs) + 1))
    # The epoch whose weights the model has now.
    final_epoch = history.index[-1]
    if recipe.patience:
        final_epoch = history["val_loss"].fillna(math.inf).idxmin()
    train_seconds = sum(epoch["seconds"] for epoch in epochs)
    # Test the model as it will be loaded: on the CPU, with PyTorch's kernels.
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
    metrics = epochs[final_epoch - 1]["metrics"]
    if recipe.patience:
        # MLflow shows the value that was logged last: it must belong to the restored weights.
        extra |= {**metrics, "best_epoch": final_epoch}
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
    """Train from the checkpoint `record` to the end, saving and logging each epoch.

    Returns:
        The number of epochs that were logged successfully.
    """
    epochs, logged = record["epochs"], 0
    if epochs:
        print(f"Resuming run {run.info.run_id} after epoch {len(epochs)}", flush=True)
    distributed.share({key: record[key] for key in ("experiment", "state")})
    for epoch in loop.train(model, training, recipe, validation, record["state"]):
        epochs.append(epoch.summary())
        record["state"] = epoch.state
        # Save before logging, so that no logged epoch is trained a second time.
        checkpoint.save(run.info.run_id, record)
        line = summary.progress(epoch.number, recipe.epochs, epoch.metrics, epoch.seconds)
        print(line, flush=True)
        try:
            with store.single_attempt():
                logged = _log_epochs(epochs, logged)
        except Exception as error:  # as in store.refusals
            logger.warning(
                "Cannot log to the tracking store (%s): training continues, %d epochs not logged",
                store.reason(error),
                len(epochs) - logged,
            )
    record["trained"] = True
    checkpoint.save(run.info.run_id, record)
    return logged


def _log_epochs(epochs: Sequence[Mapping[str, Any]], logged: int) -> int:
    """Log the metrics of all epochs after the first `logged`; return the number of epochs.

    MLflow stores a metric only once for the same step, value and timestamp.
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
