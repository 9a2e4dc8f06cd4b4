"""Metrics for comparing and selecting runs, and how to display each one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How to compare and display one metric.

    Attributes:
        header: column header in the terminal.
        scale: factor applied before display.
        spec: format specification of the scaled value.
        lower_is_better: whether smaller values are better.
        selects: whether models may be selected by this metric.
        shown: whether tables in a terminal always show it, rather than only where it is asked for.
    """

    header: str
    scale: int
    spec: str
    lower_is_better: bool = False
    selects: bool = False
    shown: bool = True


# In the order of the columns of `compare`.
METRICS = {
    "val_accuracy": Metric("val %", 100, ".2f", selects=True),
    "val_loss": Metric("val\nloss", 1, ".4f", lower_is_better=True, selects=True),
    "test_accuracy": Metric("test %", 100, ".2f", selects=True),
    "test_loss": Metric("test\nloss", 1, ".4f", lower_is_better=True, selects=True),
    "val_balanced_accuracy": Metric("val\nbalanced %", 100, ".2f", selects=True, shown=False),
    "val_macro_f1": Metric("val\nmacro F1", 1, ".4f", selects=True, shown=False),
    "test_balanced_accuracy": Metric("test\nbalanced %", 100, ".2f", selects=True, shown=False),
    "test_macro_f1": Metric("test\nmacro F1", 1, ".4f", selects=True, shown=False),
    "train_seconds": Metric("train s", 1, ".1f", lower_is_better=True),
    "images_per_second": Metric("img/s", 1, ",.0f"),
}
# Expected calibration error on the test set, of the softmax as it is and with its logits divided by
# the temperature that was fitted on validation data.
ECE = "test_ece"
CALIBRATED_ECE = "test_ece_calibrated"
TEMPERATURE = "temperature"
# Ending of the metrics of answers that are averaged over each image and its mirror image.
MIRRORED = "_tta"
DEFAULT_METRIC = "val_accuracy"
SELECTING_METRICS = tuple(name for name, metric in METRICS.items() if metric.selects)
VALIDATION_METRICS = tuple(name for name in SELECTING_METRICS if name.startswith("val_"))


def score(name: str, value: float) -> float:
    """Return a value of a metric so that higher is better."""
    return -value if METRICS[name].lower_is_better else value


def written(name: str, value: float) -> str:
    """Return a value of a metric for people: 88.48 %."""
    metric = METRICS[name]
    return f"{value * metric.scale:{metric.spec}}{' %' if metric.scale == 100 else ''}"


def described(name: str) -> str:
    """Return the name of a metric for people: validation macro F1."""
    split, _, quantity = name.partition("_")
    words = quantity.replace("_", " ").replace("f1", "F1")
    return f"{'validation' if split == 'val' else split} {words}"
