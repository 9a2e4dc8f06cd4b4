"""Turn a model's predictions into the tables that people read."""

from dataclasses import dataclass
from itertools import permutations

import pandas as pd
from sklearn.metrics import classification_report
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix
from torch import Tensor

from fashion.data import CLASSES


@dataclass(frozen=True)
class ConfusedPair:
    """How often images of one class were taken for another."""

    true: str
    predicted: str
    times: int

    def __str__(self) -> str:
        unit = "time" if self.times == 1 else "times"
        return f"{self.true} mistaken as {self.predicted}: {self.times} {unit}"


def confusion_matrix(labels: Tensor, predicted: Tensor) -> pd.DataFrame:
    """Count images by true class (rows) and predicted class (columns).

    Args:
        labels, predicted: int64 class indices, shape (N,).
    """
    counts = sklearn_confusion_matrix(labels, predicted, labels=range(len(CLASSES)))
    return pd.DataFrame(
        counts, index=pd.Index(CLASSES, name="true"), columns=pd.Index(CLASSES, name="predicted")
    )


def confused_pairs(confusion: pd.DataFrame, top: int = 10) -> list[ConfusedPair]:
    """Return the `top` ordered pairs of different classes confused most often, worst first."""
    pairs = [
        ConfusedPair(true, predicted, int(confusion.to_numpy()[row, column]))
        for (row, true), (column, predicted) in permutations(enumerate(CLASSES), 2)
    ]
    mistaken = [pair for pair in pairs if pair.times > 0]
    return sorted(mistaken, key=lambda pair: -pair.times)[:top]


def per_class(labels: Tensor, predicted: Tensor) -> pd.DataFrame:
    """Return precision, recall, F1 and number of images, one row a class.

    A class that was never predicted has precision 0.

    Args:
        labels, predicted: int64 class indices, shape (N,).
    """
    report = classification_report(
        labels,
        predicted,
        labels=range(len(CLASSES)),
        target_names=CLASSES,
        output_dict=True,
        zero_division=0,
    )
    table = pd.DataFrame([{"class": name, **report[name]} for name in CLASSES])
    return table.rename(columns={"f1-score": "f1", "support": "images"}).astype({"images": int})
