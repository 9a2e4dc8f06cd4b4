"""Compare the predictions of two models, a and b, on the same images: tables, text and a figure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from rich.console import RenderableType
from rich.table import Table
from torch import Tensor

from fashion import terminal
from fashion.analysis import markdown
from fashion.analysis.colors import COLORS
from fashion.analysis.paired import Interval, Paired, compare, wilson
from fashion.analysis.predictions import Predictions
from fashion.analysis.style import literal, styled
from fashion.data.dataset import Subset
from fashion.errors import printable
from fashion.settings.task import FASHION_MNIST

COLUMNS, ROWS = 4, 3
# Characters above an image.
CAPTION = 20
# Of the text and the figure; all are in the table that is written.
MOST_CLASSES = 20


@dataclass(frozen=True)
class Difference:
    """The predictions of two models on the same images.

    Attributes:
        names: what to call the models a and b.
        split: which images they are: "validation" or "test".
        a, b: the predictions.
        classes: names of the classes.
    """

    names: tuple[str, str]
    split: str
    a: Predictions
    b: Predictions
    classes: Sequence[str] = FASHION_MNIST.classes

    @cached_property
    def paired(self) -> Paired:
        """Which images only one of them classifies correctly; a is the first."""
        return compare(self.a.right, self.b.right)

    @property
    def picture(self) -> str:
        """Name of the figure's file."""
        return f"{self.split}_changed.png"

    @property
    def metrics(self) -> dict[str, float]:
        """The results by name; intervals are of 95 % confidence (Wilson)."""
        found: dict[str, float] = {}
        for side, right, interval in self._sides():
            found |= {
                f"{side}_accuracy": right / len(self.a),
                f"{side}_accuracy_low": interval.low,
                f"{side}_accuracy_high": interval.high,
            }
        found |= {
            "a_minus_b": found["a_accuracy"] - found["b_accuracy"],
            "only_a_right": len(self.paired.only_first),
            "only_b_right": len(self.paired.only_second),
            "p_value": self.paired.p_value("two-sided"),
        }
        prefix = "val" if self.split == "validation" else self.split
        return {f"{prefix}_{name}": value for name, value in found.items()}

    @property
    def conclusion(self) -> str:
        """The result of the test in one sentence."""
        a, b = len(self.paired.only_first), len(self.paired.only_second)
        if not self.paired.differing:
            return "Both models classify the same images correctly."
        p = self.paired.p_value("two-sided")
        return (
            f"{self.paired.differing} images are right in one model only: {a} in a, {b} in b."
            f" McNemar's exact two-sided p = {p:.2g}."
        )

    @property
    def rows(self) -> list[tuple[str, str, str, str]]:
        """For each model as text: "a" or "b", images right, accuracy and its interval."""
        return [
            (
                side,
                f"{right:,}",
                f"{right / len(self.a):.2%}",
                f"{100 * interval.low:.2f} to {interval.high:.2%}",
            )
            for side, right, interval in self._sides()
        ]

    def _sides(self) -> Iterator[tuple[str, int, Interval]]:
        for side, each in (("a", self.a), ("b", self.b)):
            right = int(each.right.sum())
            yield side, right, wilson(right, len(each))


def per_class(difference: Difference) -> pd.DataFrame:
    """Return for each class: class, images, a and b (fractions right), only_a and only_b (images).

    A class without images has the fractions NaN.
    """
    a, b = difference.a.right, difference.b.right
    table = pd.DataFrame(
        {
            "class": [difference.classes[label] for label in difference.a.labels],
            "images": 1,
            "a": a.numpy().astype(float),
            "b": b.numpy().astype(float),
            "only_a": (a & ~b).numpy().astype(int),
            "only_b": (b & ~a).numpy().astype(int),
        }
    )
    how = {"images": "sum", "a": "mean", "b": "mean", "only_a": "sum", "only_b": "sum"}
    found = table.groupby("class").agg(how).reindex(list(difference.classes)).rename_axis("class")
    counts = ["images", "only_a", "only_b"]
    return found.fillna(dict.fromkeys(counts, 0)).astype(dict.fromkeys(counts, int)).reset_index()


def most_changed(difference: Difference) -> pd.DataFrame:
    """Return the rows of `per_class` with images: the `MOST_CLASSES` with the most changes."""
    table = per_class(difference)
    table = table[table["images"] > 0]
    if len(table) <= MOST_CLASSES:
        return table
    changes = (table["only_a"] + table["only_b"]).sort_values(ascending=False, kind="stable")
    return table.loc[sorted(changes.index[:MOST_CLASSES])]


def changed(difference: Difference) -> pd.DataFrame:
    """Return the images that only one model classifies correctly, the clearest changes first.

    Returns:
        Columns: image (its row in the split), true (class), right ("a" or "b"), a and b (predicted
        classes), a_probability and b_probability (of the true class).
    """
    a, b, classes = difference.a, difference.b, difference.classes
    rows = (a.right ^ b.right).nonzero().squeeze(1)
    labels = a.labels[rows].long()
    of_true = [each.probabilities[rows].gather(1, labels[:, None]).squeeze(1) for each in (a, b)]
    table = pd.DataFrame(
        {
            "image": rows.numpy(),
            "true": [classes[label] for label in labels],
            "right": ["a" if right else "b" for right in a.right[rows]],
            "a": [classes[predicted] for predicted in a.predicted[rows]],
            "b": [classes[predicted] for predicted in b.predicted[rows]],
            "a_probability": of_true[0].numpy(),
            "b_probability": of_true[1].numpy(),
        }
    )
    change = (table["a_probability"] - table["b_probability"]).abs()
    return table.loc[change.sort_values(ascending=False, kind="stable").index].reset_index(
        drop=True
    )


def render(differences: Sequence[Difference]) -> str:
    """Return comparisons of the same two models as text for a terminal of 80 columns."""
    blocks: list[RenderableType] = [
        f"{side}  {printable(name)}" for side, name in zip("ab", differences[0].names, strict=True)
    ]
    for each in differences:
        accuracy = _table("", "right", "accuracy", "95 % interval")
        for row in each.rows:
            accuracy.add_row(*row)
        classes = _table("class", "images", "a %", "b %", "a - b", "only a", "only b")
        shown = most_changed(each)
        for row in shown.itertuples(index=False):
            name, images, a, b, only_a, only_b = row
            classes.add_row(
                name,
                f"{images:,}",
                f"{100 * a:.1f}",
                f"{100 * b:.1f}",
                f"{100 * (a - b):+.1f}",
                str(only_a),
                str(only_b),
            )
        title = f"{len(each.a):,} {each.split} images"
        blocks += ["", title, "", accuracy, "", each.conclusion, "", classes]
        if len(shown) < len(each.classes) > MOST_CLASSES:
            blocks += ["", f"{len(shown)} of {len(each.classes)} classes: the most changes."]
    return terminal.render(*blocks)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(first)
    for header in others:
        table.add_column(header, justify="right")
    return table


def note(differences: Sequence[Difference], pictures: Mapping[str, str]) -> str:
    """Summarise comparisons of the same two models in Markdown, for the run they are logged to.

    Args:
        differences: the comparisons.
        pictures: Markdown that shows the figure of each, by its file's name; only of those drawn.
    """
    names = zip("ab", differences[0].names, strict=True)
    paragraphs = ["\n".join(f"- **{side}**: {printable(name)}" for side, name in names)]
    for each in differences:
        paragraphs += [
            f"### {len(each.a):,} {each.split} images",
            markdown.table(["", "right", "accuracy", "95 % interval"], each.rows),
            each.conclusion,
        ]
        if each.picture in pictures:
            paragraphs.append(pictures[each.picture])
    return markdown.text(paragraphs)


def write_files(folder: Path, difference: Difference, subset: Subset) -> None:
    """Write both tables as CSV and, if any image differs, the figure.

    Args:
        folder: folder to write to.
        difference: the comparison.
        subset: the images that were classified.
    """
    pictures = changed(difference)
    per_class(difference).to_csv(folder / f"{difference.split}_per_class.csv", index=False)
    pictures.to_csv(folder / f"{difference.split}_changed.csv", index=False)
    if len(pictures):
        draw(difference, pictures, subset).savefig(folder / difference.picture)


@styled
def draw(difference: Difference, pictures: pd.DataFrame, subset: Subset) -> Figure:
    """Draw how many images of each class differ, and the clearest of them.

    Args:
        difference: the comparison.
        pictures: the result of `changed`, not empty.
        subset: the images.
    """
    table = most_changed(difference)
    # Of ten classes 2.5 inches, as much a class of more.
    bars = max(2.5, 0.25 * len(table))
    figure = Figure(figsize=(11, 6.5 + bars), layout="constrained")
    figure.suptitle(
        f"{len(difference.a):,} {difference.split} images: {difference.conclusion}\n"
        f"a: {printable(difference.names[0])}\nb: {printable(difference.names[1])}",
        x=0.01,
        ha="left",
    )
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[bars, 6.25]).ravel()
    axes = upper.subplots()
    places = range(len(table))
    axes.barh(places, -table["only_a"], color=COLORS[0])
    axes.barh(places, table["only_b"], color=COLORS[1])
    axes.set_yticks(places, [literal(name) for name in table["class"]])
    for position, (only_a, only_b) in enumerate(zip(table["only_a"], table["only_b"], strict=True)):
        axes.annotate(f"{only_a} ", (-only_a, position), ha="right", va="center", fontsize=8)
        axes.annotate(f" {only_b}", (only_b, position), ha="left", va="center", fontsize=8)
    axes.axvline(0, color="black", linewidth=0.8)
    which = "each class" if len(difference.classes) <= MOST_CLASSES else "the most changed classes"
    axes.set_title(f"Images of {which}: only a is right (left), only b is right (right)")
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.margins(x=0.1)
    left, right = lower.subfigures(1, 2, squeeze=False, wspace=0.05).ravel()
    for part, side, wrong, color in ((left, "a", "b", COLORS[0]), (right, "b", "a", COLORS[1])):
        shown = pictures[pictures["right"] == side]
        captions = [
            f"{literal(true, CAPTION)}\n{wrong}: {literal(predicted, CAPTION - 3)}"
            for true, predicted in zip(shown["true"], shown[wrong], strict=True)
        ]
        rows = torch.tensor(shown["image"].to_numpy()[: COLUMNS * ROWS])
        _grid(part, subset.take(rows), captions, color)
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
        axes.imshow(image.movedim(0, -1).numpy(), cmap="gray")
        axes.set_title(caption, fontsize=8, fontweight="normal", color="black")
        axes.add_patch(
            Rectangle(
                (0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=color, linewidth=2
            )
        )
