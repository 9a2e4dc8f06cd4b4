"""Draw a run's results. Each function returns a new matplotlib Figure; no global state is used.

A process that only draws does not import torch, which would take it seconds.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve

from fashion.analysis import tables
from fashion.analysis.colors import COLORS, NEUTRAL, RIGHT, WRONG, color_of
from fashion.analysis.paired import wilson
from fashion.analysis.style import PERCENT, epoch_axis, literal, log_axis, styled
from fashion.analysis.tables import MOST_CLASSES, expected_calibration_error
from fashion.settings.task import Task

# Characters of a class that fit above an image.
CAPTION = 24


@styled
def confusion_matrix(confusion: pd.DataFrame, title: str) -> Figure:
    """Draw the counts of `tables.confusion_matrix`, with the recall of each class.

    Errors are coloured on a scale of their own, as the diagonal would hide their differences. Of
    more classes than `MOST_CLASSES`, those with the most errors are drawn.
    """
    classes = list(confusion.index)
    if len(classes) > MOST_CLASSES:
        title += f"\n{MOST_CLASSES} of {len(classes)} classes, those with the most confusions"
    figure = Figure(figsize=(8, 6.6) if len(classes) <= 10 else (11, 9), layout="constrained")
    axes = figure.add_subplot()
    rows = tables.most_confused(confusion, MOST_CLASSES)
    classes = [literal(classes[row]) for row in rows]
    images = confusion.to_numpy().sum(axis=1)[rows]
    counts = confusion.to_numpy()[np.ix_(rows, rows)]
    diagonal = np.eye(len(classes), dtype=bool)
    with np.errstate(invalid="ignore"):  # a class without images has no shares
        shares = counts / images[:, None]
    errors = np.ma.masked_array(shares, diagonal)
    worst = errors[images > 0].max()
    limit = worst if worst is not np.ma.masked and worst > 0 else 1
    # Not the default aspect, with which the constrained layout cuts off the labels.
    drawn = axes.imshow(errors, cmap="Reds", vmin=0, vmax=limit, aspect="auto")
    axes.imshow(
        np.ma.masked_array(shares, ~diagonal), cmap="Blues", vmin=0, vmax=1.4, aspect="auto"
    )
    for (row, column), count in np.ndenumerate(counts):
        if count:
            dark = shares[row, column] > (0.7 if row == column else 0.6 * limit)
            color = "white" if dark else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    recalls = [
        f"{name}  {shares[row, row]:.1%}" if images[row] else f"{name}  no images"
        for row, name in enumerate(classes)
    ]
    axes.set(title=title, xlabel="predicted class", ylabel="true class and its recall")
    axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), recalls)
    axes.spines[:].set_linewidth(0)
    axes.tick_params(length=0)
    figure.colorbar(
        drawn,
        ax=axes,
        shrink=0.8,
        label="errors, as a share of the true class",
        format=PERCENT,
    ).outline.set_visible(False)
    return figure


@styled
def learning_curves(history: pd.DataFrame, title: str) -> Figure:
    """Draw loss and accuracy against the epoch.

    Args:
        history: indexed by epoch, with columns train_loss and train_accuracy and, if there is a
            validation set, val_loss and val_accuracy.
        title: title of the figure.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, marker in (("train", "o"), ("val", "s")):
            if f"{split}_{quantity}" in history:
                label = "validation (after the epoch)" if split == "val" else "training (during it)"
                axes.plot(history.index, history[f"{split}_{quantity}"], f"{marker}-", label=label)
        axes.set_ylabel("cross-entropy (nats)" if quantity == "loss" else quantity)
        epoch_axis(axes)
        axes.grid()
        axes.legend()
    axes.yaxis.set_major_formatter(PERCENT)
    return figure


@styled
def prediction_grid(
    images: ArrayLike,
    predicted: Sequence[str],
    true: Sequence[str] | None,
    title: str,
    confidence: Sequence[float] | None = None,
) -> Figure:
    """Draw images with their predicted class: green if it is correct, red if not.

    Args:
        images: uint8 or float, shape (N, 1 or 3, height, width).
        predicted: N class names, or titles where `true` is None.
        true: N class names, or None if unknown.
        title: title of the figure.
        confidence: N probabilities of the predictions, shown beside them.
    """
    pictures = np.moveaxis(np.asarray(images), 1, -1)
    columns = min(3, len(pictures))
    rows = -(-len(pictures) // columns)
    height = 3.1 * rows + 0.4
    figure = Figure(figsize=(3 * columns, height))
    figure.suptitle(title, y=1 - 0.1 / height, va="top")
    # Two lines of text above each image. Computing this layout would take matplotlib longer than
    # drawing.
    figure.subplots_adjust(0.01, 0.05 / height, 0.99, 1 - 0.8 / height, wspace=0.05, hspace=0.2)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for index, (axes, picture) in enumerate(zip(grid, pictures, strict=False)):
        axes.imshow(picture, cmap="gray")
        if true is None:
            axes.set_title(predicted[index], fontsize=10)
        else:
            color = RIGHT if predicted[index] == true[index] else WRONG
            sure = "" if confidence is None else f" ({confidence[index]:.0%})"
            axes.set_title(
                f"predicted: {literal(predicted[index], CAPTION)}{sure}\n"
                f"true: {literal(true[index], CAPTION)}",
                fontsize=10,
                color=color,
            )
    return figure


@styled
def contact_sheet(
    examples: Sequence[NDArray[np.uint8]], counts: Sequence[int], task: Task
) -> Figure:
    """Draw images of each class, or of the first, with the number of all its images.

    Args:
        examples: of each class to draw, images (N, channels, height, width).
        counts: numbers of images of all classes.
        task: the classes and the shape.
    """
    channels, height, width = task.shape
    rows, each = len(examples), max(1, *map(len, examples))
    # One picture with white gaps, as many axes would take matplotlib seconds.
    gap = 1 + max(height, width) // 16
    sheet = np.full((rows, height + gap, each, width + gap, channels), 255, dtype=np.uint8)
    for row, found in zip(sheet, examples, strict=True):
        row[:height, : len(found), :width] = found.transpose(2, 0, 3, 1)
    shape = rows * (height + gap), each * (width + gap)
    figure = Figure(figsize=(10, 0.5 + 8.3 * shape[0] / shape[1]), layout="constrained")
    axes = figure.add_subplot()
    # Not the default aspect, with which the constrained layout cuts off the labels.
    axes.imshow(sheet.reshape(*shape, channels), cmap="gray", aspect="auto")
    axes.set_xticks([])
    names = [
        f"{literal(name)}  {count:,}" for name, count in zip(task.classes, counts, strict=True)
    ]
    axes.set_yticks([row * (height + gap) + height / 2 for row in range(rows)], names[:rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    left_out = f", the first {rows}" if rows < len(task.classes) else ""
    axes.set_title(
        f"{literal(task.title)}: {sum(counts):,} training images of"
        f" {len(task.classes)} classes{left_out}"
    )
    return figure


@styled
def reliability_diagram(calibration: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy against confidence, and below it the number of images in each bin.

    Bars below the diagonal are overconfident predictions. Whiskers are 95 % confidence intervals
    (Wilson) of the accuracy: they are wide in bins with few images.

    Args:
        calibration: from `tables.calibration`.
        title: title of the figure.
    """
    figure = Figure(figsize=(6, 6.2), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    middles = (calibration["above"] + calibration["up_to"]) / 2
    width = (calibration["up_to"] - calibration["above"]).iloc[0]
    upper.bar(middles, calibration["accuracy"], 0.92 * width, label="accuracy")
    filled = calibration[calibration["images"] > 0]
    intervals = [
        wilson(round(accuracy * images), images)
        for accuracy, images in zip(filled["accuracy"], filled["images"], strict=True)
    ]
    upper.vlines(
        middles[filled.index],
        [interval.low for interval in intervals],
        [interval.high for interval in intervals],
        colors=NEUTRAL,
        label="its 95 % confidence interval",
    )
    upper.plot(
        middles[filled.index], filled["confidence"], "k_", markersize=9, label="mean confidence"
    )
    upper.plot([0, 1], [0, 1], "--", color=NEUTRAL, linewidth=1)
    error = expected_calibration_error(calibration)
    upper.set_title(f"expected calibration error {error:.2%}", fontweight="normal")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.legend(loc="upper left")
    lower.bar(middles, calibration["images"], 0.92 * width, color=NEUTRAL)
    lower.set(xlabel="confidence", ylabel="images", yscale="log")
    upper.yaxis.set_major_formatter(PERCENT)
    lower.xaxis.set_major_formatter(PERCENT)
    return figure


@styled
def precision_recall_curves(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], title: str
) -> Figure:
    """Draw precision against recall of each class against all others, the hardest class first.

    Of more classes than `MOST_CLASSES`, the hardest are drawn.

    Args:
        labels: class indices, shape (N,), with all classes present.
        probabilities: of the classes, shape (N, classes).
        classes: their names.
        title: title of the figure.
    """
    labels, scores = np.asarray(labels), np.asarray(probabilities)
    curves = []
    for index, name in enumerate(classes):
        true, score = labels == index, scores[:, index]
        precision, recall, _ = precision_recall_curve(true, score, drop_intermediate=True)
        curves.append((average_precision_score(true, score), name, recall, precision))
    curves.sort(key=lambda curve: curve[0])
    curves = curves[:MOST_CLASSES]

    columns = min(5, len(curves))
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(max(5, 2 * columns), 0.6 + 2 * rows), layout="constrained")
    figure.suptitle(f"{title}: precision and recall", x=0.01, ha="left")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid.ravel()[len(curves) :]:
        axes.axis("off")
    for axes, (average, name, recall, precision) in zip(grid.ravel(), curves, strict=False):
        for _, _, other_recall, other_precision in curves:
            axes.plot(other_recall, other_precision, color=NEUTRAL, alpha=0.25, linewidth=0.6)
        axes.step(recall, precision, where="post", color=COLORS[0])
        axes.set_title(f"{literal(name, CAPTION)}\naverage precision {average:.1%}", fontsize=8.5)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axes.grid()
        axes.xaxis.set_major_formatter(PERCENT)
        axes.yaxis.set_major_formatter(PERCENT)
    for axes in grid[-1]:
        axes.set_xlabel("recall")
    for axes in grid[:, 0]:
        axes.set_ylabel("precision")
    return figure


@styled
def comparison(table: pd.DataFrame) -> Figure:
    """Draw test accuracy against training time, one labelled point per run or group.

    Args:
        table: from `query.runs`, or from `query.groups` with standard deviations as error bars;
            rows with missing values are left out.
    """
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    grouped = "n" in table
    seconds, accuracy = (
        f"{metric}_mean" if grouped else metric for metric in ("train_seconds", "test_accuracy")
    )
    drawn = table.dropna(subset=[seconds, accuracy, "num_parameters"])
    for model, rows in drawn.groupby("model", sort=False):
        color = color_of(str(model))
        x, y = rows[seconds], rows[accuracy]
        axes.scatter(x, y, s=50, color=color)
        if grouped:
            spread = [rows[f"{name}_std"].fillna(0) for name in ("train_seconds", "test_accuracy")]
            axes.errorbar(x, y, spread[1], spread[0], fmt="none", color=color, capsize=3)
        # Only the best of a model is labelled, so that labels of similar runs do not overlap.
        best = rows.nlargest(1, accuracy)
        axes.annotate(
            f"{model}\n{best['num_parameters'].item():,.0f} parameters",
            (best[seconds].item(), best[accuracy].item()),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_title("Test accuracy against training time")
    axes.set(xlabel="training time (s)", ylabel="test accuracy")
    if not drawn.empty:
        log_axis(axes)
    axes.yaxis.set_major_formatter(PERCENT)
    # Room for the labels on the right.
    axes.margins(x=0.3, y=0.2)
    axes.grid()
    return figure
