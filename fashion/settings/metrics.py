"""The metrics that runs are compared and chosen by, and how each one is shown."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How to compare and show one metric.

    Attributes:
        header: the column's header on a terminal.
        scale: what the value is multiplied by before it is shown.
        spec: the format of the scaled value.
        lower_is_better: whether a smaller value is the better one.
        selects: whether a model may be chosen by it.
    """

    header: str
    scale: int
    spec: str
    lower_is_better: bool = False
    selects: bool = False


# The order is that of the columns of `compare`.
METRICS = {
    "val_accuracy": Metric("val %", 100, ".2f", selects=True),
    "val_loss": Metric("val\nloss", 1, ".4f", lower_is_better=True, selects=True),
    "test_accuracy": Metric("test %", 100, ".2f", selects=True),
    "test_loss": Metric("test\nloss", 1, ".4f", lower_is_better=True, selects=True),
    "train_seconds": Metric("train s", 1, ".1f", lower_is_better=True),
    "images_per_second": Metric("img/s", 1, ",.0f"),
}
SELECTING_METRICS = tuple(name for name, metric in METRICS.items() if metric.selects)
