"""Compare the predictions of two models, a and b, on the same images: tables, text and a figure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from rich.table import Table
from torch import Tensor

from fashion import terminal
from fashion.analysis.paired import Paired, compare, wilson
from fashion.analysis.predictions import Predictions
from fashion.analysis.style import COLORS, styled
from fashion.errors import printable
from fashion.settings.task import CLASSES

FIGURE = "changed_pictures.png"
COLUMNS, ROWS = 4, 3


@dataclass(frozen=True)
class Difference:
    """The predictions of two models on the same images.

    Attributes:
        names: what to call the models a and b.
        split: which images they are: "validation" or "test".
        a, b: the predictions.
    """

    names: tuple[str, str]
    split: str
    a: Predictions
    b: Predictions

    @cached_property
    def paired(self) -> Paired:
        """Which images only one of them classifies correctly; a is the first."""
        return compare(self.a.right, self.b.right)

    @property
    def p_value(self) -> float:
        """McNemar's exact two-sided p-value."""
        return self.paired.p_value("two-sided")

    @property
    def metrics(self) -> dict[str, float]:
        """The results by name; the interval is of 95 % confidence (Wilson)."""
        found: dict[str, float] = {}
        for side, each in (("a", self.a), ("b", self.b)):
            right = int(each.right.sum())
            low, high = wilson(right, len(each))
            found |= {
                f"{side}_accuracy": right / len(each),
                f"{side}_accuracy_low": low,
                f"{side}_accuracy_high": high,
            }
        return found | {
            "only_a_right": len(self.paired.only_first),
            "only_b_right": len(self.paired.only_second),
            "p_value": self.p_value,
        }

    @property
    def conclusion(self) -> str:
        """The result in one sentence."""
        a, b, n = len(self.paired.only_first), len(self.paired.only_second), len(self.a)
        noun = "image" if self.paired.differing == 1 else "images"
        return (
            f"{self.paired.differing} of {n:,} {self.split} {noun} right in only one: {a} in a, {b}"
            f" in b; McNemar's exact two-sided p = {self.p_value:.2g}"
        )


def per_class(difference: Difference) -> pd.DataFrame:
    """Return for each class: class, images, a and b (fractions right), only_a and only_b (images).

    A class without images has the fractions NaN.
    """
    a, b = difference.a.right, difference.b.right
    table = pd.DataFrame(
        {
            "class": [CLASSES[label] for label in difference.a.labels],
            "images": 1,
            "a": a.numpy().astype(float),
            "b": b.numpy().astype(float),
            "only_a": (a & ~b).numpy().astype(int),
            "only_b": (b & ~a).numpy().astype(int),
        }
    )
    how = {"images": "sum", "a": "mean", "b": "mean", "only_a": "sum", "only_b": "sum"}
    found = table.groupby("class").agg(how).reindex(CLASSES).rename_axis("class")
    counts = ["images", "only_a", "only_b"]
    return found.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int)).reset_index()


def changed(difference: Difference) -> pd.DataFrame:
    """Return the images that only one model classifies correctly, the clearest changes first.

    Returns:
        Columns: image (its row in the split), true (class), right ("a" or "b"), a and b (predicted
        classes), a_probability and b_probability (of the true class).
    """
    a, b = difference.a, difference.b
    rows = (a.right ^ b.right).nonzero().squeeze(1)
    labels = a.labels[rows].long()
    of_true = [each.probabilities[rows].gather(1, labels[:, None]).squeeze(1) for each in (a, b)]
    table = pd.DataFrame(
        {
            "image": rows.numpy(),
            "true": [CLASSES[label] for label in labels],
            "right": ["a" if right else "b" for right in a.right[rows]],
            "a": [CLASSES[predicted] for predicted in a.predicted[rows]],
            "b": [CLASSES[predicted] for predicted in b.predicted[rows]],
            "a_probability": of_true[0].numpy(),
            "b_probability": of_true[1].numpy(),
        }
    )
    change = (table["a_probability"] - table["b_probability"]).abs()
    return table.loc[change.sort_values(ascending=False, kind="stable").index].reset_index(
        drop=True
    )


def render(difference: Difference) -> str:
    """Return the comparison as text for a terminal of 80 columns."""
    metrics = difference.metrics
    models = Table(box=None, pad_edge=False, header_style="")
    for header in ("", "model"):
        models.add_column(header, overflow="fold")
    for header in ("right", "accuracy", "95 % interval"):
        models.add_column(header, justify="right", no_wrap=True)
    sides = zip("ab", difference.names, (difference.a, difference.b), strict=True)
    for side, name, each in sides:
        models.add_row(
            side,
            printable(name),
            f"{int(each.right.sum()):,}",
            f"{metrics[f'{side}_accuracy']:.2%}",
            _interval(difference, side),
        )
    classes = Table(box=None, pad_edge=False, header_style="")
    classes.add_column("class")
    for header in ("images", "a %", "b %", "b - a", "only a", "only b"):
        classes.add_column(header, justify="right")
    for row in per_class(difference).itertuples(index=False):
        _, images, a, b, only_a, only_b = row
        classes.add_row(
            str(row[0]),
            f"{images:,}",
            f"{a:.1%}".rstrip("%"),
            f"{b:.1%}".rstrip("%"),
            f"{100 * (b - a):+.1f}",
            str(only_a),
            str(only_b),
        )
    return terminal.render(models, "", f"{difference.conclusion}.", "", classes)


def note(difference: Difference, run_id: str) -> str:
    """Summarise the comparison in Markdown, for the run that it is logged to."""
    metrics = difference.metrics
    rows = [
        f"| {side} | {printable(name)} | {metrics[f'{side}_accuracy']:.2%} |"
        f" {_interval(difference, side)} |"
        for side, name in zip("ab", difference.names, strict=True)
    ]
    paragraphs = [
        f"### {' and '.join(difference.names)} on {len(difference.a):,} {difference.split} images",
        "\n".join(["| | model | accuracy | 95 % interval |", "| --- | --- | ---: | ---: |", *rows]),
        f"{difference.conclusion}.",
    ]
    if difference.paired.differing:
        paragraphs.append(f"![Pictures](get-artifact?path={FIGURE}&run_uuid={run_id})")
    return "\n\n".join(paragraphs) + "\n"


def _interval(difference: Difference, side: str) -> str:
    low, high = (difference.metrics[f"{side}_accuracy_{end}"] for end in ("low", "high"))
    return f"{100 * low:.2f} to {100 * high:.2f} %"


def write_files(folder: Path, difference: Difference, images: Tensor) -> None:
    """Write both tables as CSV and, if any image differs, the figure.

    Args:
        folder: folder to write to.
        difference: the comparison.
        images: uint8, shape (N, 1, 28, 28), that were classified.
    """
    pictures = changed(difference)
    per_class(difference).to_csv(folder / "per_class.csv", index=False)
    pictures.to_csv(folder / "changed_pictures.csv", index=False)
    if len(pictures):
        draw(difference, pictures, images).savefig(folder / FIGURE)


@styled
def draw(difference: Difference, pictures: pd.DataFrame, images: Tensor) -> Figure:
    """Draw how many images of each class differ, and the clearest of them.

    Args:
        difference: the comparison.
        pictures: the result of `changed`, not empty.
        images: uint8, shape (N, 1, 28, 28).
    """
    figure = Figure(figsize=(11, 9), layout="constrained")
    figure.suptitle(
        f"{difference.conclusion}\na: {difference.names[0]}\nb: {difference.names[1]}",
        x=0.01,
        ha="left",
    )
    upper, lower = figure.subfigures(2, 1, height_ratios=[2, 5])
    axes = upper.subplots()
    table = per_class(difference)
    axes.barh(table["class"], -table["only_a"], color=COLORS[0])
    axes.barh(table["class"], table["only_b"], color=COLORS[1])
    for position, (only_a, only_b) in enumerate(zip(table["only_a"], table["only_b"], strict=True)):
        axes.annotate(f"{only_a} ", (-only_a, position), ha="right", va="center", fontsize=8)
        axes.annotate(f" {only_b}", (only_b, position), ha="left", va="center", fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_title("Images of each class: only a is right (left), only b is right (right)")
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.1)
    left, right = lower.subfigures(1, 2, wspace=0.05)
    for part, side, wrong, color in ((left, "a", "b", COLORS[0]), (right, "b", "a", COLORS[1])):
        shown = pictures[pictures["right"] == side]
        captions = [
            f"{true}\n{wrong}: {predicted}"
            for true, predicted in zip(shown["true"], shown[wrong], strict=True)
        ]
        _grid(part, images[torch.tensor(shown["image"].to_numpy())], captions, color)
        count = f"the clearest {COLUMNS * ROWS} of {len(shown)}"
        part.suptitle(
            f"only {side} is right: {count if len(shown) > COLUMNS * ROWS else len(shown)}"
        )
    return figure


def _grid(part: SubFigure, images: Tensor, captions: Sequence[str], color: str) -> None:
    """Draw the first images with their captions in a grid."""
    grid = part.subplots(ROWS, COLUMNS).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, caption in zip(grid, images, captions, strict=False):
        axes.imshow(image.squeeze(0).numpy(), cmap="gray")
        axes.set_title(caption, fontsize=8, fontweight="normal", color="black")
        axes.add_patch(
            Rectangle(
                (0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=color, linewidth=2
            )
        )
