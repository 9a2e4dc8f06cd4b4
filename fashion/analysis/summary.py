"""Summarise a training run: files, progress lines and a note."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from fashion.analysis import figures, tables
from fashion.data.dataset import Subset
from fashion.settings.experiment import Recipe
from fashion.settings.task import CLASSES
from fashion.training.evaluation import Evaluation


def write_files(
    folder: Path,
    model: str,
    seed: int,
    history: pd.DataFrame,
    subset: Subset,
    answers: Evaluation,
    calibration: pd.DataFrame,
) -> list[tables.ConfusedPair]:
    """Write the learning curves, and what `write_predictions` does.

    Args:
        folder: folder to write to.
        model: name of the model.
        seed: seed for the choice of the images to draw.
        history: metrics by epoch.
        subset: the classified images.
        answers: the model's predictions on `subset`.
        calibration: the result of `tables.calibration`.

    Returns:
        The most confused pairs of classes.
    """
    figures.learning_curves(history, model).savefig(folder / "learning_curves.png")
    return write_predictions(folder, model, seed, subset, answers, calibration, "test images")


def write_predictions(
    folder: Path,
    model: str,
    seed: int,
    subset: Subset,
    answers: Evaluation,
    calibration: pd.DataFrame,
    images: str,
) -> list[tables.ConfusedPair]:
    """Write tables and figures of a model's predictions.

    Args:
        folder, model, seed, subset, answers, calibration: as for `write_files`.
        images: what to call the images.

    Returns:
        The most confused pairs of classes.
    """
    predicted = answers.logits.argmax(dim=1)
    confusion = tables.confusion_matrix(subset.labels, predicted)
    pairs = tables.confused_pairs(confusion)
    title = f"{model}: {answers.accuracy:.2%} of {len(subset):,} {images} are right"

    confusion.to_csv(folder / "confusion_matrix.csv")
    (folder / "confused_pairs.txt").write_text("".join(f"{pair}\n" for pair in pairs))
    figures.confusion_matrix(confusion, title).savefig(folder / "confusion_matrix.png")
    if answers.logits.isfinite().all():  # not for a diverged model
        figures.reliability_diagram(calibration, title).savefig(folder / "reliability.png")
        if len(subset.labels.unique()) == len(CLASSES):
            figures.precision_recall_curves(subset.labels, answers.logits, title).savefig(
                folder / "precision_recall.png"
            )
    rows = torch.randperm(len(subset), generator=torch.Generator().manual_seed(seed))[:9]
    _grid(subset, rows, answers, title).savefig(folder / "predictions.png")
    wrong = tables.most_confidently_wrong(subset.labels, answers.logits)
    if len(wrong):
        title = f"{model}: most confident mistakes"
        _grid(subset, wrong, answers, title).savefig(folder / "confidently_wrong.png")
    return pairs


# Of the files of `write_files`, those to compare across runs; by key of the UI's image grid.
PICTURES = {
    "confusion matrix": "confusion_matrix.png",
    "predictions": "predictions.png",
    "surest mistakes": "confidently_wrong.png",
}


def pictures(folder: Path) -> dict[str, Path]:
    """Return which pictures in the folder of `write_files` to compare across runs, by name."""
    paths = {key: folder / name for key, name in PICTURES.items()}
    return {key: path for key, path in paths.items() if path.exists()}


def _grid(subset: Subset, rows: torch.Tensor, answers: Evaluation, title: str) -> Figure:
    """Draw the images of `rows` with the model's predictions and their probabilities."""
    confidence, predicted = answers.logits[rows].softmax(dim=1).max(dim=1)
    return figures.prediction_grid(
        subset.images[rows],
        predicted=[CLASSES[index] for index in predicted],
        true=[CLASSES[index] for index in subset.labels[rows]],
        title=title,
        confidence=confidence.tolist(),
    )


def picture(run_id: str, title: str, name: str) -> str:
    """Return the Markdown that shows a picture among a run's artifacts in MLflow's UI."""
    return f"![{title}](get-artifact?path={name}&run_uuid={run_id})"


def progress(number: int, epochs: int, metrics: Mapping[str, float], seconds: float) -> str:
    """Return the progress line of an epoch."""
    line = (
        f"epoch {number}/{epochs}: train loss {metrics['train_loss']:.4f},"
        f" accuracy {metrics['train_accuracy']:.2%}"
    )
    if "val_loss" in metrics:
        line += f"; val loss {metrics['val_loss']:.4f}, accuracy {metrics['val_accuracy']:.2%}"
    return f"{line} ({seconds:.1f} s)"


def note(
    run_id: str,
    model: str,
    num_parameters: int,
    recipe: Recipe,
    metrics: Mapping[str, float],
    pairs: list[tables.ConfusedPair],
) -> str:
    """Summarise a run in Markdown.

    Args:
        run_id: id of the run.
        model: name of the model.
        num_parameters: number of parameters of the model.
        recipe: how it was trained.
        metrics: metrics of the final weights.
        pairs: the most confused pairs of classes.
    """
    splits = [split for split in ("train", "val", "test") if f"{split}_loss" in metrics]
    rows = [
        f"| {split} | {metrics[f'{split}_loss']:.4f} | {metrics[f'{split}_accuracy']:.2%} |"
        for split in splits
    ]
    # The UI keeps line breaks.
    return "\n".join(
        [
            f"### {model}: {metrics['test_accuracy']:.2%} test accuracy",
            "",
            f"{num_parameters:,} parameters, {recipe.epochs} epochs of"
            f" {recipe.optimizer} (lr {recipe.lr:g}, batch {recipe.batch_size},"
            f" seed {recipe.seed}): {metrics['train_seconds']:.1f} s of training,"
            f" {metrics['images_per_second']:,.0f} images/s.",
            "",
            "| split | loss | accuracy |",
            "| --- | --- | --- |",
            *rows,
            "",
            "Most confused on the test set:",
            "",
            *(f"- {pair}" for pair in pairs[:5]),
            "",
            picture(run_id, "Confusion matrix", "confusion_matrix.png"),
            "",
        ]
    )
