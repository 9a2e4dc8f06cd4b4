"""Two models' predictions on the same images, compared."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fashion.analysis import difference
from fashion.analysis.difference import Difference
from fashion.analysis.predictions import Predictions
from fashion.data.dataset import Subset
from fashion.settings.task import Task

TRUE = [0] * 6 + [6] * 6  # T-shirts and shirts
A = [0, 0, 0, 0, 6, 6, 6, 6, 6, 6, 6, 0]
B = [0, 0, 0, 6, 0, 6, 6, 6, 0, 0, 0, 0]
IMAGES = Subset(
    "black", torch.zeros(12, 1, 28, 28, dtype=torch.uint8), torch.tensor(TRUE), "digest"
)


def predictions(predicted: list[int], confidence: list[float] | None = None) -> Predictions:
    """Return predictions of which all but the given class have equal probabilities."""
    sure = torch.tensor(confidence or [0.9] * len(predicted))
    probabilities = ((1 - sure) / 9)[:, None].repeat(1, 10)
    probabilities[torch.arange(len(predicted)), predicted] = sure
    labels = torch.tensor(TRUE, dtype=torch.uint8)
    classes = torch.tensor(predicted, dtype=torch.uint8)
    return Predictions("digest", labels, classes, probabilities.log().half())


@pytest.fixture
def found() -> Difference:
    sure = [0.9] * 8 + [0.5, 0.7, 0.6, 0.9]
    return Difference(
        ("cnn (0123abcd)", "other"), "validation", predictions(A), predictions(B, sure)
    )


def test_accuracy_intervals_and_the_test_of_mcnemar(found: Difference) -> None:
    metrics = found.metrics
    assert metrics["val_a_accuracy"] == pytest.approx(9 / 12)
    assert metrics["val_b_accuracy"] == pytest.approx(6 / 12)
    assert metrics["val_a_minus_b"] == pytest.approx(3 / 12)
    assert (metrics["val_only_a_right"], metrics["val_only_b_right"]) == (4, 1)
    assert metrics["val_p_value"] == pytest.approx(12 / 32)
    # Wilson's interval of 6 of 12.
    assert metrics["val_b_accuracy_low"] == pytest.approx(0.2538, abs=1e-4)
    assert metrics["val_b_accuracy_high"] == pytest.approx(0.7462, abs=1e-4)


def test_each_class_has_a_row(found: Difference) -> None:
    table = difference.per_class(found).set_index("class")
    assert len(table) == 10
    assert table.loc["Shirt"].tolist() == pytest.approx([6, 5 / 6, 2 / 6, 3, 0])
    assert table.loc["T-shirt/top"].tolist() == pytest.approx([6, 4 / 6, 4 / 6, 1, 1])
    assert table.loc["Bag", "images"] == 0
    assert pd.isna(table.loc["Bag", "a"])


def test_the_clearest_changes_come_first(found: Difference) -> None:
    table = difference.changed(found)
    assert sorted(table["image"]) == [3, 4, 8, 9, 10]
    assert table["image"].tolist()[-3:] == [9, 10, 8]
    last = table.iloc[-1]
    assert (last["true"], last["right"], last["a"], last["b"]) == (
        "Shirt",
        "a",
        "Shirt",
        "T-shirt/top",
    )
    assert last["a_probability"] == pytest.approx(0.9, abs=1e-3)
    assert last["b_probability"] == pytest.approx(0.5 / 9, abs=1e-3)
    assert table.set_index("image").loc[4, "right"] == "b"


def test_the_text_fits_80_columns_and_names_both_models(found: Difference) -> None:
    names = "run\nwith " + "a long name " * 10, "other"
    long = Difference(names, "test", found.a, found.b)
    text = difference.render([long, found])
    assert max(map(len, text.splitlines())) <= 80
    assert "a      9    75.00%  46.77 to 91.11%" in text
    assert "12 validation images" in text
    assert "5 images are right in one model only: 4 in a, 1 in b." in text
    rows = [line.split() for line in text.splitlines()]
    assert ["Shirt", "6", "83.3", "33.3", "+50.0", "3", "0"] in rows
    assert "Bag" not in text  # there is none
    assert r"run\nwith a long name" in text


def test_the_note_shows_only_pictures_that_were_drawn(found: Difference) -> None:
    note = difference.note([found], {"validation_changed.png": "![Changed](x)"})
    assert "- **b**: other" in note
    cells = note.replace("&emsp;", "")
    assert "| a | 9 | 75.00% | 46.77 to 91.11% |" in cells
    assert note.endswith("p = 0.38.\n\n![Changed](x)\n")
    assert "![" not in difference.note([found], {})


def test_the_files_hold_the_tables_and_the_pictures(found: Difference, tmp_path: Path) -> None:
    difference.write_files(tmp_path, found, IMAGES)
    assert len(pd.read_csv(tmp_path / "validation_changed.csv")) == 5
    assert len(pd.read_csv(tmp_path / "validation_per_class.csv")) == 10
    with Image.open(tmp_path / "validation_changed.png") as figure:
        assert figure.width > 1000


def test_equal_predictions_have_no_figure(found: Difference, tmp_path: Path) -> None:
    same = Difference(found.names, "test", found.a, found.a)
    assert same.metrics["test_p_value"] == 1
    assert same.conclusion == "Both models classify the same images correctly."
    difference.write_files(tmp_path, same, IMAGES)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".csv"]


def many(count: int) -> Difference:
    """Return predictions on an image of each class: a is right in all, b in the first half."""
    labels = torch.arange(count, dtype=torch.uint8)
    logits = torch.eye(count)
    a = Predictions("digest", labels, labels, logits.half())
    b = Predictions("digest", labels, labels.where(labels < count // 2, labels - 1), logits.half())
    return Difference(("a", "b"), "test", a, b, [f"${number}$" for number in range(count)])


def test_of_many_classes_those_with_the_most_changes_are_shown(tmp_path: Path) -> None:
    found = many(200)
    text = difference.render([found])
    assert "\n20 of 200 classes: the most changes.\n" in text
    shown = [f"${number}$" for number in range(100, 120)]
    assert [line.split()[0] for line in text.splitlines() if line.startswith("$")] == shown
    assert len(difference.per_class(found)) == 200

    task = Task("many", "Many", tuple(found.classes), (3, 16, 24))
    pixels = torch.randint(0, 256, (200, *task.shape), dtype=torch.uint8)
    subset = Subset("many", pixels, found.a.labels.long(), "digest", task)
    drawn = difference.draw(found, difference.changed(found), subset)
    bars, first, *_ = drawn.axes
    assert [each.get_text() for each in bars.get_yticklabels()] == [
        name.replace("$", r"\$") for name in shown
    ]
    assert np.array_equal(first.images[0].get_array(), pixels[100].permute(1, 2, 0))
    difference.write_files(tmp_path, found, subset)


def test_of_few_classes_all_are_shown() -> None:
    text = difference.render([many(20)])
    assert "the most changes" not in text
    assert sum(line.startswith("$") for line in text.splitlines()) == 20
