"""How a model classifies labelled images, as text and files."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn

from fashion.analysis import report
from fashion.analysis.report import Report
from fashion.data.dataset import Subset
from fashion.settings.task import Task
from fashion.training.evaluation import evaluate


class Fixed(nn.Module):
    """Answers the given logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[: len(images)]


def made(classes: int) -> Report:
    """Return a report on three images of each class; of the last ten, one of three is wrong."""
    task = Task("many", "Many", tuple(f"c{number}" for number in range(classes)), (3, 6, 6))
    labels = torch.arange(classes).repeat(3)
    subset = Subset("many", torch.zeros(len(labels), 3, 6, 6, dtype=torch.uint8), labels, "d", task)
    answers = torch.where((torch.arange(len(labels)) >= len(labels) - 10), 0, labels)
    logits = 9 * nn.functional.one_hot(answers, classes).float()
    return Report("many", "test", subset, evaluate(Fixed(logits).eval(), subset))


def test_of_many_classes_those_with_the_lowest_f1_are_shown() -> None:
    text = report.render(made(30))
    rows = [line.split()[0] for line in text.splitlines() if line.startswith("c")][1:]
    assert rows[:11] == ["c0", *(f"c{number}" for number in range(20, 30))]
    assert "\nThe 20 of 30 classes with the lowest F1.\n" in text
    assert "lowest" not in report.render(made(20))


def test_classes_count_alike_however_many_images_they_have() -> None:
    found = made(30)
    assert found.metrics["test_accuracy"] == pytest.approx(80 / 90)
    assert found.metrics["test_balanced_accuracy"] == pytest.approx(80 / 90)
    # Ten classes with two of three found, and one with ten of another kind.
    assert found.metrics["test_macro_f1"] == pytest.approx((19 + 10 * 0.8 + 6 / 16) / 30)


@pytest.mark.parametrize("classes", [12, 200])
def test_the_files_name_the_classes_of_the_task(tmp_path: Path, classes: int) -> None:
    files = [Path(f"{number}.png") for number in range(3 * classes)]
    report.write_files(tmp_path, made(classes), files)
    table = pd.read_csv(tmp_path / "predictions.csv")
    assert table["true"].nunique() == classes
    assert (tmp_path / "confusion_matrix.png").exists()
