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
    """

    header: str
    scale: int
    spec: str
    lower_is_better: bool = False
    selects: bool = False


# In the order of the columns of `compare`.
METRICS = {
    "val_accuracy": Metric("val %", 100, ".2f", selects=True),
    "val_loss": Metric("val\nloss", 1, ".4f", lower_is_better=True, selects=True),
    "test_accuracy": Metric("test %", 100, ".2f", selects=True),
    "test_loss": Metric("test\nloss", 1, ".4f", lower_is_better=True, selects=True),
    "train_seconds": Metric("train s", 1, ".1f", lower_is_better=True),
    "images_per_second": Metric("img/s", 1, ",.0f"),
}
# Expected calibration error on the test set, of the softmax as it is and with its logits divided by
# the temperature that was fitted on validation data.
ECE = "test_ece"
CALIBRATED_ECE = "test_ece_calibrated"
TEMPERATURE = "temperature"
DEFAULT_METRIC = "val_accuracy"
SELECTING_METRICS = tuple(name for name, metric in METRICS.items() if metric.selects)
