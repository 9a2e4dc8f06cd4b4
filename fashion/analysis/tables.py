"""Compute tables of a model's predictions: confusion matrix, per-class metrics, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from sklearn.metrics import classification_report
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

if TYPE_CHECKING:  # figures are drawn without importing torch
    from torch import Tensor

# Classes that a figure has room for.
MOST_CLASSES = 20


@dataclass(frozen=True)
class ConfusedPair:
    """How often images of one class were classified as another."""

    true: str
    predicted: str
    times: int

    def __str__(self) -> str:
        unit = "time" if self.times == 1 else "times"
        return f"{self.true} mistaken as {self.predicted}: {self.times} {unit}"


def confusion_matrix(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """Count images by true class (rows) and predicted class (columns).

    Args:
        labels, predicted: int64 class indices, shape (N,).
        classes: their names.
    """
    counts = sklearn_confusion_matrix(labels, predicted, labels=range(len(classes)))
    return pd.DataFrame(
        counts, index=pd.Index(classes, name="true"), columns=pd.Index(classes, name="predicted")
    )


def confused_pairs(confusion: pd.DataFrame, top: int = 10) -> list[ConfusedPair]:
    """Return the `top` most frequently confused (true, predicted) pairs, worst first."""
    pairs = [
        ConfusedPair(true, predicted, int(confusion.to_numpy()[row, column]))
        for (row, true), (column, predicted) in permutations(enumerate(confusion.index), 2)
    ]
    mistaken = [pair for pair in pairs if pair.times > 0]
    return sorted(mistaken, key=lambda pair: -pair.times)[:top]


def most_confused(confusion: pd.DataFrame, top: int) -> list[int]:
    """Return the places of the `top` classes in most confusions, in the order of the classes."""
    counts = confusion.to_numpy()
    errors = counts.sum(axis=0) + counts.sum(axis=1) - 2 * counts.diagonal()
    return sorted(np.argsort(-errors, kind="stable")[:top].tolist())


def per_class(labels: Tensor, predicted: Tensor, classes: Sequence[str]) -> pd.DataFrame:
    """Return precision, recall, F1 and number of images, one row per class.

    A class that was never predicted has precision 0.

    Args:
        labels, predicted: int64 class indices, shape (N,).
        classes: their names.
    """
    report = classification_report(
        labels,
        predicted,
        labels=range(len(classes)),
        target_names=classes,
        output_dict=True,
        zero_division=0,
    )
    table = pd.DataFrame([{"class": name, **report[name]} for name in classes])
    return table.rename(columns={"f1-score": "f1", "support": "images"}).astype({"images": int})


def calibration(labels: Tensor, logits: Tensor, bins: int = 15) -> pd.DataFrame:
    """Compare the confidence of predictions with their accuracy.

    Confidence is the maximum softmax probability. Source: Guo, Pleiss, Sun and Weinberger, "On
    Calibration of Modern Neural Networks" (arXiv:1706.04599).

    Args:
        labels: int64 class indices, shape (N,).
        logits: float32, shape (N, classes).
        bins: number of confidence bins of equal width between 0 and 1.

    Returns:
        One row per bin: above and up_to (its bounds), images, and their mean confidence and
        accuracy, both NaN for empty bins.
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    answers = pd.DataFrame({"confidence": confidence, "right": predicted == labels})
    bounds = np.linspace(0, 1, bins + 1)
    # Predictions of a diverged model are NaN, and in no bin.
    grouped = answers.groupby(
        pd.cut(answers["confidence"], list(bounds), labels=False, include_lowest=True)
    )
    table = pd.DataFrame({"above": bounds[:-1], "up_to": bounds[1:]})
    return table.assign(
        images=grouped.size().reindex(table.index, fill_value=0),
        confidence=grouped["confidence"].mean(),
        accuracy=grouped["right"].mean(),
    )


def expected_calibration_error(table: pd.DataFrame) -> float:
    """Return the mean absolute difference of confidence and accuracy over all images.

    Args:
        table: from `calibration`.

    Returns:
        The error in [0, 1]; NaN if all bins are empty.
    """
    filled = table[table["images"] > 0]
    gap = (filled["confidence"] - filled["accuracy"]).abs()
    return float(np.average(gap, weights=filled["images"])) if len(filled) else math.nan


def most_confidently_wrong(labels: Tensor, logits: Tensor, top: int = 9) -> Tensor:
    """Return the indices (int64) of the `top` most confident wrong predictions, in that order."""
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    wrong = (predicted != labels).nonzero().squeeze(1)
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:top]
