"""Train models as MLflow runs, and go on with runs that were stopped."""

import logging
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.models import Model, infer_signature
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from torch import nn

from fashion import checkpoint, data, distributed, engine, figures, report, runs, summary
from fashion.checkpoint import CheckpointError
from fashion.data import FashionMNIST, Subset
from fashion.engine import Evaluation
from fashion.experiment import Experiment
from fashion.models import Architecture
from fashion.recipe import Recipe

# The tag that tells a training run, and of which model, from the other runs of an experiment.
MODEL_TAG = "model"
MODEL_ARTIFACT = "model"
PER_CLASS_ARTIFACT = "per_class.json"
# What loading the logged model takes; inferring it would load the model in a second process.
PIP_REQUIREMENTS = [
    f"mlflow=={mlflow.__version__}",
    f"torch=={torch.__version__.split('+')[0]}",
]
KEPT = "the trained model is kept; log it by mlflow run . -e replay"

logger = logging.getLogger(__name__)


def train(
    experiment: Experiment,
    dataset: FashionMNIST,
    *,
    nested: bool = False,
    system_metrics: bool = False,
) -> str:
    """Train one model and log everything about it as one MLflow run.

    Of several processes the first calls this, the others `follow`. A checkpoint is written after
    each epoch, for `resume`. When the tracking store goes away training goes on, and what there is
    to log waits for it.

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
    model, params = experiment.build()
    with runs.running(name=experiment.model, nested=nested, system_metrics=system_metrics) as run:
        record = {
            "experiment": asdict(experiment),
            "params": params,
            "epochs": [],
            "trained": False,
            "state": None,
        }
        checkpoint.save(run.info.run_id, record)
        _complete(run, record, experiment, model, dataset)
    return run.info.run_id


def follow(dataset: FashionMNIST) -> None:
    """Train what the first process does by `train` or `resume`: no MLflow run, no output."""
    record = distributed.share(None)
    experiment = _experiment(record)
    training, validation = dataset.split(experiment.val_size)
    model, _ = experiment.build()
    for _ in engine.train(model, training, experiment.recipe, validation, record["state"]):
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
    with runs.refusals(runs.START_IT), runs.single_attempt():
        if run_id == "latest":
            kept = filter(checkpoint.exists, checkpoint.unfinished())
            run_id = next(filter(runs.present, kept), run_id)
        known = run_id != "latest" and runs.present(run_id)
    if not known:
        raise CheckpointError(f"this machine has no unfinished run of this store: {run_id}")
    with checkpoint.held(run_id):
        record = checkpoint.load(run_id)
        experiment = _experiment(record)
        _refuse_changes(run_id, _settings(experiment), given or {})
        model, params = experiment.build()
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
            with runs.refusals(runs.START_IT), runs.single_attempt():
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


def log_spread(run_ids: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Log mean and standard deviation of the runs' final metrics in the active run.

    The standard deviation is the sample's (n - 1).

    Returns:
        (mean, standard deviation) by metric.
    """
    finals = pd.DataFrame([mlflow.get_run(run_id).data.metrics for run_id in run_ids])
    spread = {str(name): (values.mean(), values.std()) for name, values in finals.items()}
    mlflow.log_metrics(
        {f"{name}_mean": mean for name, (mean, _) in spread.items()}
        | {f"{name}_std": std for name, (_, std) in spread.items()}
    )
    return spread


@contextmanager
def _active_or_new_run(name: str) -> Iterator[str]:
    active = mlflow.active_run()
    if active:
        yield active.info.run_id
    else:
        with runs.running(name=name) as run:
            yield run.info.run_id


def log_comparison(table: pd.DataFrame) -> str:
    """Log a table of `compare.runs` or `compare.groups` and its figure; return the run's id.

    The run is the active one, else the one that `mlflow run` opened, else a new one.
    """
    printable = table.astype(dict.fromkeys(table.select_dtypes("datetimetz").columns, str))
    with _active_or_new_run("comparison") as run_id:
        mlflow.log_table(printable, "comparison.json")
        mlflow.log_figure(figures.comparison(table), "comparison.png")
    return run_id


def log_exploration(table: str, drawn: Mapping[str, Figure]) -> str:
    """Log what `explore` made, its figures by file name; return the run's id.

    The run is the one that `mlflow run` opened, else a new one.
    """
    with _active_or_new_run("explore") as run_id:
        mlflow.log_text(table, "layers.txt")
        for name, figure in drawn.items():
            mlflow.log_figure(figure, name)
    return run_id


def _settings(experiment: Experiment) -> dict[str, Any]:
    """Return everything that was asked for, by the names of the options."""
    settings = asdict(experiment)
    return settings | settings.pop("architecture") | settings.pop("recipe")


def _experiment(record: Mapping[str, Any]) -> Experiment:
    saved = dict(record["experiment"])
    architecture, recipe = Architecture(**saved.pop("architecture")), Recipe(**saved.pop("recipe"))
    return Experiment(architecture=architecture, recipe=recipe, **saved)


def _refuse_changes(run_id: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    changes = [
        f"{name} was {before[name]}, is {value}"
        for name, value in now.items()
        # Another patch of Python computes the same.
        if before[name] != value and name != "python_version"
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
    with runs.refusals(runs.START_IT):
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
    test = engine.evaluate(model, dataset.test)
    print(f"test loss {test.loss:.4f}, accuracy {test.accuracy:.2%}", flush=True)
    calibration = report.calibration(dataset.test.labels, test.logits)
    final = {
        "test_loss": test.loss,
        "test_accuracy": test.accuracy,
        "test_ece": report.expected_calibration_error(calibration),
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
        with runs.refusals(KEPT):
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
    for epoch in engine.train(model, training, recipe, validation, record["state"]):
        epochs.append(epoch.summary())
        record["state"] = epoch.state
        # First kept, then logged: what has been logged will not be trained again.
        checkpoint.save(run.info.run_id, record)
        line = summary.progress(epoch.number, recipe.epochs, epoch.metrics, epoch.seconds)
        print(line, flush=True)
        try:
            with runs.single_attempt():
                logged = _log_epochs(epochs, logged)
        except Exception as error:  # as in runs.refusals
            logger.warning(
                "The tracking store does not answer (%s): training goes on, %d epochs wait for it",
                runs.reason(error),
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
            answers = engine.evaluate(model, subset, tta=True)
            metrics[f"{name}_accuracy_tta"] = answers.accuracy
            metrics[f"{name}_loss_tta"] = answers.loss
    return metrics


def _log_params(run: Run, params: Mapping[str, Any]) -> None:
    # `mlflow run` has logged the parameters of the entry point as they were typed. A parameter
    # cannot be logged again in another spelling (1e-1 for 0.1): mlflow/mlflow#3536.
    mlflow.log_params({key: params[key] for key in params.keys() - run.data.params.keys()})


def _log_lineage(training: Subset, validation: Subset | None, test: Subset) -> None:
    subsets = {"training": training, "validation": validation, "test": test}
    present = {context: subset for context, subset in subsets.items() if subset is not None}
    source = HTTPDatasetSource(data.HOMEPAGE)
    mlflow.log_inputs(
        datasets=[
            MetaDataset(source, name=subset.name, digest=subset.digest)  # type: ignore[abstract]
            for subset in present.values()
        ],
        contexts=list(present),
        tags_list=[{"images": str(len(subset))} for subset in present.values()],
    )


def log_model(run: Run, model: nn.Module, subset: Subset, answers: Evaluation) -> str:
    """Log the run's model as a pt2 archive: no pickle, none of our code to load it.

    What an earlier attempt at the run has logged of it is completed, so that a run has one model.

    Args:
        run: the active one.
        model: in evaluation mode, on the CPU.
        subset: images, of which the first ones are the input example.
        answers: the model's answers on `subset`.

    Returns:
        The logged model's id.
    """
    begun = _begun_model(run)
    if begun is not None and begun.status == LoggedModelStatus.READY:
        return begun.model_id
    # A batch of two keeps the batch dimension dynamic: torch.export fixes a dimension of size 1.
    images = data.to_float(subset.images[:2]).numpy()
    archive: dict[str, Any] = {
        "signature": infer_signature(images, answers.logits[:2].numpy()),
        "input_example": images,
        "pip_requirements": PIP_REQUIREMENTS,
        "serialization_format": "pt2",
    }
    if begun is None:
        return mlflow.pytorch.log_model(model, name=MODEL_ARTIFACT, **archive).model_id
    _complete_model(run, begun, model, archive)
    return begun.model_id


def _begun_model(run: Run) -> LoggedModel | None:
    """Return the model that an earlier attempt at the run has logged, or began to, if any."""
    found = MlflowClient().search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'", max_results=1
    )
    return found[0] if found else None


def _complete_model(
    run: Run, begun: LoggedModel, model: nn.Module, archive: Mapping[str, Any]
) -> None:
    """Log a begun model to its end.

    MLflow's log_model would make it an output of its run, which it may be already, and fail.
    """
    client, run_id, model_id = MlflowClient(), run.info.run_id, begun.model_id
    outputs = client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    described = Model(begun.artifact_location, run_id, model_uuid=model_id, model_id=model_id)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, MODEL_ARTIFACT))
        mlflow.pytorch.save_model(model, path, mlflow_model=described, **archive)
        client.log_model_artifacts(model_id, path)
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)


def _log_per_class(run: Run, subset: Subset, answers: Evaluation) -> None:
    logged = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    if PER_CLASS_ARTIFACT not in logged:  # log_table would append to it
        table = report.per_class(subset.labels, answers.logits.argmax(dim=1))
        mlflow.log_table(table, PER_CLASS_ARTIFACT)
