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
            "train_digest": f"all but {val_size}",
            "epochs": 1,
            "num_parameters": 10,
            "seed": 0,
            "status": "FINISHED",
            "run_id": "0123456789",
            "run_name": "cnn",
            "start_time": pd.Timestamp("2026-02-03 04:05"),
        }
        for accuracy, val_size in runs
    ]
    return pd.DataFrame(rows).convert_dtypes()


def test_only_settings_that_differ_are_shown_and_names_that_are_not_the_models() -> None:
    table = table_of((0.95, 200), (0.91, 200))
    header = comparison.render(table, "table").splitlines()[1].split()
    assert not {"seed", "epochs", "name"} & {*header}
    table["seed"], table["run_name"] = [7, 8], ["cnn", "again"]
    header, _, first, second = comparison.render(table, "table").splitlines()[1:]
    assert header.split()[-5:] == ["params", "seed", "name", "started", "run"]
    assert first.split()[-4:] == ["7", "02-03", "04:05", "01234567"]
    assert second.split()[-5:] == ["8", "again", "02-03", "04:05", "01234567"]


def test_results_on_other_validation_images_are_marked() -> None:
    text = comparison.render(table_of((0.95, 10), (0.91, 5000), (math.nan, 0)), "table")
    assert "95.00* " in text
    assert "91.00 " in text
    assert text.endswith("* not on the 5,000 validation images of the others\n")


def test_results_on_the_same_validation_images_are_not_marked() -> None:
    assert "*" not in comparison.render(table_of((0.95, 200), (0.91, 200), (math.nan, 0)), "table")
