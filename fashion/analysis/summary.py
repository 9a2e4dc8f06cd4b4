"""What a training run shows of itself: files and a note."""

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
    """Write tables and figures of a model's answers.

    Args:
        folder: where to.
        model: its name.
        seed: of the images that are drawn.
        history: metrics by epoch.
        subset: what was asked.
        answers: the model's.
        calibration: `report.calibration` of them.

    Returns:
        The pairs of classes that the model confuses most.
    """
    predicted = answers.logits.argmax(dim=1)
    confusion = tables.confusion_matrix(subset.labels, predicted)
    pairs = tables.confused_pairs(confusion)
    title = f"{model}: {answers.accuracy:.2%} of {len(subset):,} test images"

    confusion.to_csv(folder / "confusion_matrix.csv")
    (folder / "confused_pairs.txt").write_text("".join(f"{pair}\n" for pair in pairs))
    figures.confusion_matrix(confusion, title).savefig(folder / "confusion_matrix.png")
    figures.learning_curves(history, model).savefig(folder / "learning_curves.png")
    if answers.logits.isfinite().all():  # a diverged model is sure of nothing
        figures.reliability_diagram(calibration, title).savefig(folder / "reliability.png")
        figures.precision_recall_curves(subset.labels, answers.logits, title).savefig(
            folder / "precision_recall.png"
        )
    rows = torch.randperm(len(subset), generator=torch.Generator().manual_seed(seed))[:9]
    _grid(subset, rows, answers, title).savefig(folder / "predictions.png")
    wrong = tables.most_confidently_wrong(subset.labels, answers.logits)
    if len(wrong):
        title = f"{model}: the mistakes it was surest of"
        _grid(subset, wrong, answers, title).savefig(folder / "confidently_wrong.png")
    return pairs


def _grid(subset: Subset, rows: torch.Tensor, answers: Evaluation, title: str) -> Figure:
    """Draw the images of `rows` with what the model made of them, and how sure it was."""
    confidence, predicted = answers.logits[rows].softmax(dim=1).max(dim=1)
    return figures.prediction_grid(
        subset.images[rows],
        predicted=[CLASSES[index] for index in predicted],
        true=[CLASSES[index] for index in subset.labels[rows]],
        title=title,
        confidence=confidence.tolist(),
    )


def progress(number: int, epochs: int, metrics: Mapping[str, float], seconds: float) -> str:
    """Return one line on an epoch."""
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
    """Sum a run up in Markdown.

    Args:
        run_id: the run's.
        model: its name.
        num_parameters: the model's.
        recipe: how it was trained.
        metrics: of the weights that were kept.
        pairs: the classes that it confuses most.
    """
    splits = [split for split in ("train", "val", "test") if f"{split}_loss" in metrics]
    rows = [
        f"| {split} | {metrics[f'{split}_loss']:.4f} | {metrics[f'{split}_accuracy']:.2%} |"
        for split in splits
    ]
    # The UI breaks a line wherever the text does. It serves the run's artifacts under get-artifact.
    picture = f"get-artifact?path=confusion_matrix.png&run_uuid={run_id}"
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
            f"![Confusion matrix]({picture})",
            "",
        ]
    )
