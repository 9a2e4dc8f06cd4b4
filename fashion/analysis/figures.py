"""Draw a run's results. Each function returns a new matplotlib Figure; no global state is used."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay
from torch import Tensor

from fashion.settings.task import CLASSES

RIGHT, WRONG = "tab:green", "tab:red"


def confusion_matrix(confusion: pd.DataFrame, title: str) -> Figure:
    """Draw the counts of `tables.confusion_matrix`, coloured by the share of the true class."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.add_subplot()
    shares = confusion.div(confusion.sum(axis="columns"), axis="index").to_numpy()
    display = ConfusionMatrixDisplay(shares, display_labels=CLASSES)
    display.plot(ax=axes, cmap="Blues", include_values=False, im_kw={"vmin": 0, "vmax": 1})
    for (row, column), count in np.ndenumerate(confusion.to_numpy()):
        if count:
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=9)
    axes.set(title=title, xlabel="predicted", ylabel="true")
    axes.tick_params(axis="x", labelrotation=45)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    return figure


def learning_curves(history: pd.DataFrame, title: str) -> Figure:
    """Draw loss and accuracy against the epoch.

    Args:
        history: indexed by epoch, with columns train_loss and train_accuracy and, if there is a
            validation set, val_loss and val_accuracy.
        title: title of the figure.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    figure.suptitle(title)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, marker in (("train", "o"), ("val", "s")):
            if f"{split}_{quantity}" in history:
                label = "validation" if split == "val" else split
                axes.plot(history.index, history[f"{split}_{quantity}"], f"{marker}-", label=label)
        axes.set(xlabel="epoch", ylabel=f"{quantity} (nats)" if quantity == "loss" else quantity)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def prediction_grid(
    images: Tensor,
    predicted: Sequence[str],
    true: Sequence[str] | None,
    title: str,
    confidence: Sequence[float] | None = None,
) -> Figure:
    """Draw images with their predicted class: green if it is correct, red if not.

    Args:
        images: uint8 or float, shape (N, 1, height, width).
        predicted: N titles.
        true: N class names, or None if unknown.
        title: title of the figure.
        confidence: N probabilities of the predictions, shown beside them.
    """
    columns = min(3, len(images))
    rows = -(-len(images) // columns)
    height = 3.1 * rows + 0.4
    figure = Figure(figsize=(3 * columns, height))
    figure.suptitle(title, y=1 - 0.1 / height, va="top")
    # Two lines of text above each image. Computing this layout would take matplotlib longer than
    # drawing.
    figure.subplots_adjust(0.01, 0.05 / height, 0.99, 1 - 0.8 / height, wspace=0.05, hspace=0.2)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for index, (axes, image) in enumerate(zip(grid, images, strict=False)):
        axes.imshow(image.squeeze(0).numpy(), cmap="gray")
        if true is None:
            axes.set_title(predicted[index], fontsize=10)
        else:
            color = RIGHT if predicted[index] == true[index] else WRONG
            sure = "" if confidence is None else f" ({confidence[index]:.0%})"
            axes.set_title(
                f"predicted: {predicted[index]}{sure}\ntrue: {true[index]}",
                fontsize=10,
                color=color,
            )
    return figure


def reliability_diagram(calibration: pd.DataFrame, title: str) -> Figure:
    """Draw accuracy against confidence, and below it the number of images in each bin.

    Bars below the diagonal are overconfident predictions.

    Args:
        calibration: from `tables.calibration`.
        title: title of the figure.
    """
    figure = Figure(figsize=(6, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    middles = (calibration["above"] + calibration["up_to"]) / 2
    width = (calibration["up_to"] - calibration["above"]).iloc[0]
    upper.bar(middles, calibration["accuracy"], width, edgecolor="white", label="accuracy")
    upper.plot(calibration["confidence"], calibration["confidence"], "k_", label="mean confidence")
    upper.plot([0, 1], [0, 1], "--", color="gray", label="perfectly calibrated")
    upper.set(title=title, ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    upper.legend(loc="upper left")
    lower.bar(middles, calibration["images"], width, color="tab:gray", edgecolor="white")
    lower.set(xlabel="confidence", ylabel="images", yscale="log")
    return figure


def precision_recall_curves(labels: Tensor, logits: Tensor, title: str) -> Figure:
    """Draw precision against recall, each class against all others.

    Args:
        labels: int64 class indices, shape (N,), with all classes present.
        logits: float32, shape (N, 10).
        title: title of the figure.
    """
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.add_subplot()
    probabilities = logits.softmax(dim=1)
    for index, name in enumerate(CLASSES):
        PrecisionRecallDisplay.from_predictions(
            labels == index, probabilities[:, index], ax=axes, name=name
        )
    axes.set(title=title, xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    return figure


def comparison(table: pd.DataFrame) -> Figure:
    """Draw test accuracy against training time, one disc per run or group, sized by parameters.

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
    for index, (model, rows) in enumerate(drawn.groupby("model", sort=False)):
        color = f"C{index}"
        label = f"{model} ({rows['num_parameters'].iloc[0]:,.0f} parameters)"
        x, y = rows[seconds], rows[accuracy] * 100
        axes.scatter(x, y, s=rows["num_parameters"] / 40, color=color, alpha=0.6, label=label)
        if grouped:
            xerr = rows["train_seconds_std"].fillna(0)
            yerr = rows["test_accuracy_std"].fillna(0) * 100
            axes.errorbar(x, y, xerr=xerr, yerr=yerr, fmt="none", color=color, capsize=3)
    axes.set(
        xscale="log", xlabel="training time (s)", ylabel="test accuracy (%)", title="Fashion-MNIST"
    )
    axes.margins(0.2)
    axes.grid(alpha=0.3, which="both")
    if not drawn.empty:
        # One size in the legend: discs as large as in the plot would overlap the text.
        for handle in axes.legend(loc="best").legend_handles:
            if isinstance(handle, PathCollection):
                handle.set_sizes([60])
    return figure
