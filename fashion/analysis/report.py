"""How a model classifies labelled images, as text, as a note and as files."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
from rich.table import Table

from fashion import terminal
from fashion.analysis import drawing, markdown, predictions, spreadsheet, summary, tables
from fashion.analysis.paired import wilson
from fashion.data.dataset import Subset
from fashion.errors import printable
from fashion.training.evaluation import Evaluation

# The choice of images to draw.
SEED = 0
# Of the text; all are in the table that is logged.
MOST_CLASSES = 20


@dataclass(frozen=True)
class Report:
    """What a model answers to labelled images.

    Attributes:
        name: what to call the model.
        kind: what the images are: "test" or "labelled".
        subset: the images.
        answers: the model's answers.
    """

    name: str
    kind: str
    subset: Subset
    answers: Evaluation

    @cached_property
    def calibration(self) -> pd.DataFrame:
        """The result of `tables.calibration`."""
        return tables.calibration(self.subset.labels, self.answers.logits)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """By name: accuracy with its 95 % confidence interval (Wilson), loss, balanced accuracy,
        macro F1, calibration error.
        """
        low, high = wilson(self._right, len(self.subset))
        found = {
            "accuracy": self.answers.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "loss": self.answers.loss,
            "balanced_accuracy": self.answers.balanced_accuracy,
            "macro_f1": self.answers.macro_f1,
            "ece": tables.expected_calibration_error(self.calibration),
        }
        return {f"{self.kind}_{name}": value for name, value in found.items()}

    @property
    def _right(self) -> int:
        return round(self.answers.accuracy * len(self.subset))

    @property
    def lines(self) -> list[str]:
        """The metrics in three lines."""
        accuracy, low, high, loss, balanced, f1, ece = self.metrics.values()
        return [
            f"{self._right:,} of {len(self.subset):,} {self.kind} images are right: {accuracy:.2%}"
            f" (95 % interval {100 * low:.2f} to {high:.2%})",
            f"balanced accuracy {balanced:.2%}, macro F1 {f1:.4f}",
            f"loss {loss:.4f}, expected calibration error {ece:.2%}",
        ]

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """The result of `tables.per_class`, without classes that have no images."""
        predicted, classes = self.answers.logits.argmax(dim=1), self.subset.task.classes
        table = tables.per_class(self.subset.labels, predicted, classes)
        return table[table["images"] > 0]

    @cached_property
    def pairs(self) -> Sequence[tables.ConfusedPair]:
        """The most confused pairs of classes."""
        predicted, classes = self.answers.logits.argmax(dim=1), self.subset.task.classes
        confusion = tables.confusion_matrix(self.subset.labels, predicted, classes)
        return tables.confused_pairs(confusion, top=5)


def render(report: Report) -> str:
    """Return the report as text for a terminal of 80 columns.

    Of more classes than `MOST_CLASSES`, those with the lowest F1.
    """
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("class")
    for header in ("images", "precision %", "recall %", "F1 %"):
        table.add_column(header, justify="right")
    rows, remark = report.per_class, []
    if len(rows) > MOST_CLASSES:
        remark = ["", f"The {MOST_CLASSES} of {len(rows)} classes with the lowest F1."]
        rows = rows.nsmallest(MOST_CLASSES, "f1")
    for row in rows.to_dict("records"):
        shares = (f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1"))
        table.add_row(str(row["class"]), f"{row['images']:,}", *shares)
    pairs = ["", *map(str, report.pairs)] if report.pairs else []
    return terminal.render(printable(report.name), *report.lines, "", table, *remark, *pairs)


def note(report: Report, run_id: str) -> str:
    """Summarise the report in Markdown, for the run that it is logged to."""
    paragraphs = [f"### {printable(report.name)}", *report.lines]
    if report.pairs:
        paragraphs.append("\n".join(["Most confused:\n", *(f"- {pair}" for pair in report.pairs)]))
    paragraphs.append(markdown.picture(run_id, "Confusion matrix", "confusion_matrix.png"))
    return markdown.text(paragraphs)


def write_files(folder: Path, report: Report, files: Sequence[Path]) -> None:
    """Write figures and tables as for a training run, the predictions, and the answer to each file.

    Args:
        folder: folder to write to.
        report: the report.
        files: the images' files; empty if they have none.
    """
    _, drawings = summary.write_predictions(
        folder,
        printable(report.name),
        SEED,
        report.subset,
        report.answers,
        report.calibration,
        f"{report.kind} images",
    )
    for each in drawings:
        drawing.draw(each)
    answers, classes = predictions.of(report.subset, report.answers), report.subset.task.classes
    predictions.write(folder / predictions.FILE, {report.kind: answers})
    if files:
        table = pd.DataFrame(
            {
                "image": [printable(str(file)) for file in files],
                "true": [classes[label] for label in answers.labels],
                "predicted": [classes[label] for label in answers.predicted],
                "probability": answers.probabilities.max(dim=1).values,
            }
        )
        spreadsheet.harmless(table).to_csv(folder / "predictions.csv", index=False)
