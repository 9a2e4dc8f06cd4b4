"""Test a trained model, and log what its run has found: metrics, files and the model itself."""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from torch import nn

from fashion import advice
from fashion.analysis import drawing, markdown, predictions, summary, tables
from fashion.analysis.calibration import fit_temperature
from fashion.analysis.pictures import to_compare
from fashion.analysis.predictions import Predictions
from fashion.data.dataset import Dataset, Subset
from fashion.settings.experiment import Experiment
from fashion.settings.metrics import CALIBRATED_ECE, ECE, MIRRORED, TEMPERATURE
from fashion.tracking import store
from fashion.tracking.models import log_model
from fashion.tracking.records import dataset_of, log_epochs, log_per_class, log_pictures
from fashion.training import evaluation
from fashion.training.evaluation import Evaluation


def log(
    run: Run,
    record: Mapping[str, Any],
    experiment: Experiment,
    model: nn.Module,
    dataset: Dataset,
    logged: int,
) -> None:
    """Log all results of a training. Logging anything a second time changes nothing.

    Args:
        run: the active run.
        record: the checkpoint of the finished training.
        experiment: what was trained.
        model: the trained model; it is moved to the CPU.
        dataset: the dataset.
        logged: number of epochs whose metrics have been logged.

    Raises:
        TrackingError: the tracking store cannot be used.
    """
    recipe, epochs = experiment.recipe, record["epochs"]
    training, validation = dataset.split(experiment.val_size)
    # As it will be loaded: on the CPU, with PyTorch's kernels.
    model.to("cpu")
    tested = _test(model, dataset.test, record.get("validation"))
    mirrored = _tta(model, validation, dataset.test) if experiment.tta else {}
    print(summary.final(tested.metrics | mirrored), flush=True)
    train_seconds = sum(epoch["seconds"] for epoch in epochs)
    final = tested.metrics | {
        "train_seconds": train_seconds,
        "images_per_second": len(training) * len(epochs) / train_seconds,
    }
    last = final_epoch(epochs, recipe.patience)
    metrics = epochs[last - 1]["metrics"]
    extra = dict(mirrored)
    if recipe.patience:
        # MLflow shows the value that was logged last: it must belong to the restored weights.
        extra |= {**metrics, "best_epoch": last}
    timestamp = epochs[-1]["timestamp"] + 1
    with tempfile.TemporaryDirectory() as folder:
        pairs, drawings = summary.write_files(
            Path(folder),
            experiment.model,
            recipe.seed,
            pd.DataFrame([epoch["metrics"] for epoch in epochs], range(1, len(epochs) + 1)),
            training,
            dataset.test,
            tested.answers,
            tested.calibration,
        )
        predictions.write(Path(folder, predictions.FILE), tested.predictions)
        with store.refusals(f"the trained model is saved; log it with {advice.command('replay')}"):
            with drawing.drawn(drawings):
                log_epochs(epochs, logged)
                model_id = log_model(
                    run,
                    experiment.title,
                    model,
                    dataset.test,
                    tested.answers,
                    tested.metrics[TEMPERATURE],
                )
                _log_final(
                    final, epochs[last - 1], last, model_id, validation, dataset.test, timestamp
                )
                mlflow.log_metrics(extra, step=len(epochs), timestamp=timestamp)
            mlflow.log_artifacts(folder)
            log_pictures(run, to_compare(Path(folder)))
            log_per_class(run, dataset.test, tested.answers)
            text = summary.note(
                experiment.model,
                record["params"]["num_parameters"],
                recipe,
                metrics | final | mirrored,
                pairs,
                advice.command("train", config=f"runs:/{run.info.run_id}"),
            )
            MlflowClient().set_logged_model_tags(model_id, {MLFLOW_RUN_NOTE: text})
            picture = markdown.picture(run.info.run_id, "Confusion matrix", "confusion_matrix.png")
            mlflow.set_tag(MLFLOW_RUN_NOTE, f"{text}\n{picture}\n")


def final_epoch(epochs: Sequence[Mapping[str, Any]], patience: int) -> int:
    """Return the number of the epoch whose weights the model has if training stops after `epochs`.

    With a `patience` it is the one with the lowest validation loss, else the last one.
    """
    if not patience:
        return len(epochs)
    losses = [epoch["metrics"]["val_loss"] for epoch in epochs]
    losses = [math.inf if math.isnan(loss) else loss for loss in losses]
    return losses.index(min(losses)) + 1


@dataclass(frozen=True)
class _Tested:
    """What a model answers to the test images.

    Attributes:
        answers: the evaluation.
        calibration: the result of `tables.calibration` for it.
        predictions: those to keep, by name of the images: test and, if there are any, validation.
        metrics: those of the test images, and the temperature.
    """

    answers: Evaluation
    calibration: pd.DataFrame
    predictions: dict[str, Predictions]
    metrics: dict[str, float]


def _test(model: nn.Module, test: Subset, validated: Mapping[str, Any] | None) -> _Tested:
    """Evaluate `model` on the test images.

    Args:
        model: on the CPU.
        test: the images.
        validated: fields of its predictions on the validation images, which its temperature is
            fitted to; None without such images.
    """
    answers = evaluation.evaluate(model, test)
    kept = {"test": predictions.of(test, answers)}
    temperature = 1.0
    if validated is not None:
        kept["validation"] = Predictions(**validated)
        temperature = fit_temperature(kept["validation"].labels, kept["validation"].logits)
    calibration = tables.calibration(test.labels, answers.logits)
    calibrated = tables.calibration(test.labels, answers.logits / temperature)
    metrics = {
        **answers.metrics("test"),
        ECE: tables.expected_calibration_error(calibration),
        CALIBRATED_ECE: tables.expected_calibration_error(calibrated),
        TEMPERATURE: temperature,
    }
    return _Tested(answers, calibration, kept, metrics)


def _log_final(
    final: Mapping[str, float],
    epoch: Mapping[str, Any],
    step: int,
    model_id: str,
    validation: Subset | None,
    test: Subset,
    timestamp: int,
) -> None:
    """Log the metrics of the final weights, linked to the model and to the images of each.

    The UI and `search_logged_models` rank models by metrics that are linked to both.
    """
    if validation is not None:
        # As `_log_epochs` has logged them: MLflow stores them only once.
        mlflow.log_metrics(
            {name: value for name, value in epoch["metrics"].items() if name.startswith("val_")},
            step=step,
            timestamp=epoch["timestamp"],
            model_id=model_id,
            dataset=dataset_of(validation),
        )
    on_test = {name: value for name, value in final.items() if name.startswith("test_")}
    mlflow.log_metrics(on_test, model_id=model_id, dataset=dataset_of(test), timestamp=timestamp)
    others = {name: value for name, value in final.items() if name not in on_test}
    mlflow.log_metrics(others, model_id=model_id, timestamp=timestamp)


def _tta(model: nn.Module, validation: Subset | None, test: Subset) -> dict[str, float]:
    metrics = {}
    for name, subset in (("val", validation), ("test", test)):
        if subset is not None:
            answers = evaluation.evaluate(model, subset, tta=True)
            metrics[f"{name}_accuracy{MIRRORED}"] = answers.accuracy
            metrics[f"{name}_loss{MIRRORED}"] = answers.loss
    return metrics
