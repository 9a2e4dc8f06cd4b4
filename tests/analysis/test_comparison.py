"""How `compare` prints what is not comparable."""

import math

import pandas as pd

from fashion.analysis import comparison
from fashion.settings.metrics import METRICS


def table_of(*runs: tuple[float, int]) -> pd.DataFrame:
    """Return the table of runs with these validation accuracies and val_size."""
    rows = [
        {
            **dict.fromkeys(METRICS, 0.5),
            "model": "cnn",
            "val_accuracy": accuracy,
            "val_size": val_size,
            "epochs": 1,
            "num_parameters": 10,
            "seed": 0,
            "status": "FINISHED",
            "run_id": "0123456789",
        }
        for accuracy, val_size in runs
    ]
    return pd.DataFrame(rows).convert_dtypes()


def test_results_on_other_validation_images_are_marked() -> None:
    text = comparison.render(table_of((0.95, 10), (0.91, 5000), (math.nan, 0)), "table")
    assert "95.00* " in text
    assert "91.00 " in text
    assert text.endswith("* not on the 5,000 validation images of the others\n")


def test_results_on_the_same_validation_images_are_not_marked() -> None:
    assert "*" not in comparison.render(table_of((0.95, 200), (0.91, 200), (math.nan, 0)), "table")
