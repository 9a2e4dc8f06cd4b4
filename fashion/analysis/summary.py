"""Summarise a training run: files, progress lines and a note."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from fashion.analysis import markdown, tables
from fashion.analysis.drawing import Drawing
from fashion.data.dataset import Subset
from fashion.settings.experiment import Experiment, Recipe
from fashion.settings.metrics import MIRRORED
from fashion.settings.task import FASHION_MNIST, Task
from fashion.training.evaluation import Evaluation

AVERAGED = "averaged with mirror images"


def write_files(
    folder: Path,
    model: str,
    seed: int,
    history: pd.DataFrame,
    training: Subset,
    subset: Subset,
    answers: Evaluation,
    calibration: pd.DataFrame,
) -> tuple[list[tables.ConfusedPair], list[Drawing]]:
    """Write what `write_predictions` writes.

    Args:
        folder: folder to write to.
        model: name of the model.
        seed: seed for the choice of the images to draw.
        history: metrics by epoch.
        training: the training images.
        subset: the classified images.
        answers: the model's predictions on `subset`.
        calibration: the result of `tables.calibration`.

    Returns:
        The most confused pairs of classes, and the figures that are still to be drawn into the
        folder: those of `write_predictions`, the learning curves and the first training images.
    """
    pairs, drawings = write_predictions(
        folder, model, seed, subset, answers, calibration, "test images"
    )
    classes = len(training.task.classes)
    counts = training.labels.bincount(minlength=classes).tolist()
    sheet = examples(training), counts, training.task
    return pairs, [
        Drawing(folder / "learning_curves.png", "learning_curves", (history, model)),
        Drawing(folder / "training_images.png", "contact_sheet", sheet),
        *drawings,
    ]


def examples(subset: Subset, each: int = 10) -> list[NDArray[np.uint8]]:
    """Return the first images of each class that a figure has room for.

    Each is uint8, shape (N, channels, height, width).
    """
    return [
        subset.take((subset.labels == label).nonzero().squeeze(1)[:each]).numpy()
        for label in range(min(len(subset.task.classes), tables.MOST_CLASSES))
    ]


def write_predictions(
    folder: Path,
    model: str,
    seed: int,
    subset: Subset,
    answers: Evaluation,
    calibration: pd.DataFrame,
    images: str,
) -> tuple[list[tables.ConfusedPair], list[Drawing]]:
    """Write tables of a model's predictions.

    Args:
        folder, model, seed, subset, answers, calibration: as for `write_files`.
        images: what to call the images.

    Returns:
        The most confused pairs of classes, and the figures that are still to be drawn into the
        folder.
    """
    predicted, classes = answers.logits.argmax(dim=1), subset.task.classes
    confusion = tables.confusion_matrix(subset.labels, predicted, classes)
    pairs = tables.confused_pairs(confusion)
    title = f"{model}: {answers.accuracy:.2%} of {len(subset):,} {images} are right"

    confusion.to_csv(folder / "confusion_matrix.csv")
    (folder / "confused_pairs.txt").write_text("".join(f"{pair}\n" for pair in pairs))
    rows = torch.randperm(len(subset), generator=torch.Generator().manual_seed(seed))[:9]
    drawings = [
        Drawing(folder / "confusion_matrix.png", "confusion_matrix", (confusion, title)),
        _grid(folder / "predictions.png", subset, rows, answers, title),
    ]
    if answers.logits.isfinite().all():  # not for a diverged model
        diagram = calibration, title
        drawings.append(Drawing(folder / "reliability.png", "reliability_diagram", diagram))
        if len(subset.labels.unique()) == len(classes):
            probabilities = answers.logits.softmax(dim=1).numpy()
            curves = subset.labels.numpy(), probabilities, classes, title
            drawings.append(
                Drawing(folder / "precision_recall.png", "precision_recall_curves", curves)
            )
    wrong = tables.most_confidently_wrong(subset.labels, answers.logits)
    if len(wrong):
        title = f"{model}: most confident mistakes"
        drawings.append(_grid(folder / "confidently_wrong.png", subset, wrong, answers, title))
    return pairs, drawings


def _grid(
    path: Path, subset: Subset, rows: torch.Tensor, answers: Evaluation, title: str
) -> Drawing:
    """Return a figure of the images of `rows`, with the model's predictions and probabilities."""
    confidence, predicted = answers.logits[rows].softmax(dim=1).max(dim=1)
    classes = subset.task.classes
    grid = (
        subset.take(rows).numpy(),
        [classes[index] for index in predicted],
        [classes[index] for index in subset.labels[rows]],
        title,
        confidence.tolist(),
    )
    return Drawing(path, "prediction_grid", grid)


def progress(number: int, epochs: int, metrics: Mapping[str, float], seconds: float) -> str:
    """Return the progress line of an epoch: loss and accuracy in training and validation, time."""
    parts = [f"epoch {number}/{epochs}", _result("train", metrics)]
    if "val_loss" in metrics:
        parts.append(_result("val", metrics))
    return "  ".join([*parts, f"{seconds:.1f} s"])


def _result(split: str, metrics: Mapping[str, float], kind: str = "") -> str:
    loss, accuracy = metrics[f"{split}_loss{kind}"], metrics[f"{split}_accuracy{kind}"]
    return f"{split} {loss:.4f} {accuracy:7.2%}"


def final(metrics: Mapping[str, float]) -> str:
    """Return the line with the result on the test set, and one averaged with mirror images."""
    lines = [_result("test", metrics)]
    if f"test_loss{MIRRORED}" in metrics:
        lines.append(f"{_result('test', metrics, MIRRORED)}  {AVERAGED}")
    return "\n".join(lines)


def header(experiment: Experiment, params: Mapping[str, Any], data: Subset, validation: int) -> str:
    """Say in three lines what is about to be trained, how, on what.

    Args:
        experiment: the settings.
        params: what `build` returned.
        data: the training images.
        validation: number of validation images.
    """
    recipe = experiment.recipe
    held_out = f", {validation:,} held out" if validation else ""
    threads = f"{params['threads']} thread{'s' * (params['threads'] > 1)}"
    processes = f"{params['nproc']} processes, " if params["nproc"] > 1 else ""
    return (
        f"Training {experiment.model}, {params['num_parameters']:,} parameters\n"
        f"  {_plan(recipe)}\n"
        f"  {len(data):,} images{_kind(data.task)}{held_out}; {params['device_name']},"
        f" {processes}{threads}, {params['kernels_used']} kernels"
    )


def _kind(task: Task) -> str:
    """Describe the images of another task than the lab's."""
    if task == FASHION_MNIST:
        return ""
    return f" of {task.title}, {task.size}, {len(task.classes)} classes"


def _plan(recipe: Recipe) -> str:
    epochs = "1 epoch" if recipe.epochs == 1 else f"{recipe.epochs} epochs"
    return (
        f"{epochs} of {recipe.optimizer}, lr {recipe.lr:g}, batch {recipe.batch_size},"
        f" seed {recipe.seed}"
    )


def note(
    model: str,
    num_parameters: int,
    recipe: Recipe,
    metrics: Mapping[str, float],
    pairs: list[tables.ConfusedPair],
    again: str,
) -> str:
    """Summarise a run in Markdown.

    Args:
        model: name of the model.
        num_parameters: number of parameters of the model.
        recipe: how it was trained.
        metrics: metrics of the final weights.
        pairs: the most confused pairs of classes.
        again: the command that trains with the same settings.
    """
    rows = [
        [
            f"{split}{how}",
            f"{metrics[f'{key}_loss{kind}']:.4f}",
            f"{metrics[f'{key}_accuracy{kind}']:.2%}",
        ]
        for kind, how in (("", ""), (MIRRORED, f", {AVERAGED}"))
        for key, split in (("train", "training"), ("val", "validation"), ("test", "test"))
        if f"{key}_loss{kind}" in metrics
    ]
    confused = "\n".join(f"- {pair}" for pair in pairs[:5])
    return markdown.text(
        [
            f"### {model}: {metrics['test_accuracy']:.2%} test accuracy",
            f"{num_parameters:,} parameters, {_plan(recipe)}: {metrics['train_seconds']:.1f} s of"
            f" training, {metrics['images_per_second']:,.0f} images/s.",
            markdown.table(["images", "loss", "accuracy"], rows),
            *([f"**Most confused on the test set.**\n\n{confused}"] if pairs else []),
            f"**The same settings again.**\n\n```sh\n{again}\n```",
        ]
    )
