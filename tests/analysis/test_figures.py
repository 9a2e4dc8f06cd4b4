"""The figures show what they were given."""

import math

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure

from fashion.analysis import figures, tables
from fashion.data.dataset import FashionMNIST
from fashion.settings.task import CLASSES


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_grid_shows_each_image_with_its_classes_right_in_green_wrong_in_red(
    dataset: FashionMNIST,
) -> None:
    images = dataset.test.images[:9]
    true = [CLASSES[label] for label in dataset.test.labels[:9]]
    predicted = ["Bag", *true[1:]]
    figure = figures.prediction_grid(images, predicted, true, "nine")
    assert len(figure.axes) == 9
    for index, axes in enumerate(figure.axes):
        (shown,) = axes.get_images()
        assert (shown.get_array() == images[index, 0].numpy()).all()
        assert axes.get_title() == f"predicted: {predicted[index]}\ntrue: {true[index]}"
        assert axes.title.get_color() == (figures.RIGHT if index else figures.WRONG)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_grid_takes_any_number_of_images(dataset: FashionMNIST, count: int) -> None:
    images = dataset.test.images[:count]
    figure = figures.prediction_grid(images, ["Bag"] * count, None, "some")
    assert sum(len(axes.get_images()) for axes in figure.axes) == count


def test_a_grid_says_how_sure_the_model_was(dataset: FashionMNIST) -> None:
    figure = figures.prediction_grid(
        dataset.test.images[:1], ["Bag"], ["Coat"], "one", confidence=[0.987]
    )
    assert figure.axes[0].get_title() == "predicted: Bag (99%)\ntrue: Coat"


def test_a_reliability_diagram_has_a_bar_a_bin(dataset: FashionMNIST) -> None:
    labels = dataset.test.labels
    # Sure to 80 % of the class that comes next, which is right for nobody, or of the true one.
    answers = torch.nn.functional.one_hot(labels, 10).double() * 0.78 + 0.022
    answers[:2500] = answers[:2500].roll(1, dims=1)
    table = tables.calibration(labels, answers.log(), bins=10)
    upper, lower = figures.reliability_diagram(table, "title").axes
    heights = [bar.get_height() for bar in upper.patches]
    assert heights[7:9] == pytest.approx([math.nan, 0.75], nan_ok=True)
    assert [bar.get_height() for bar in lower.patches] == [0] * 8 + [10_000, 0]


def test_each_class_has_its_precision_recall_curve(dataset: FashionMNIST) -> None:
    labels = dataset.test.labels
    logits = torch.nn.functional.one_hot(labels, 10).float()
    (axes,) = figures.precision_recall_curves(labels, logits, "title").axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == [f"{name} (AP = 1.00)" for name in CLASSES]


def test_the_confusion_matrix_shows_every_count(dataset: FashionMNIST) -> None:
    labels = dataset.test.labels
    predicted = labels.clone()
    predicted[labels == 6] = 0
    confusion = tables.confusion_matrix(labels, predicted)
    figure = figures.confusion_matrix(confusion, "title")
    assert sorted(texts(figure)) == ["1000"] * 10
    assert str(tables.confused_pairs(confusion)[0]) == "Shirt mistaken as T-shirt/top: 1000 times"


def test_learning_curves_show_validation_only_where_there_was_some() -> None:
    history = pd.DataFrame({"train_loss": [1.0, 0.5], "train_accuracy": [0.5, 0.7]}, index=[1, 2])
    without = figures.learning_curves(history, "title")
    assert [len(axes.lines) for axes in without.axes] == [1, 1]
    both = history.assign(val_loss=[0.9, 0.6], val_accuracy=[0.6, 0.7])
    loss, accuracy = figures.learning_curves(both, "title").axes
    assert [line.get_ydata().tolist() for line in loss.lines] == [[1.0, 0.5], [0.9, 0.6]]
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [[0.5, 0.7], [0.6, 0.7]]


def test_a_comparison_leaves_out_what_has_no_figures() -> None:
    table = pd.DataFrame(
        {
            "model": ["cnn", "baseline", "cnn"],
            "train_seconds": [60.0, 3.0, None],
            "test_accuracy": [0.88, 0.83, None],
            "num_parameters": [7740, 7960, 7740],
        }
    )
    (axes,) = figures.comparison(table).axes
    points = [tuple(point) for disc in axes.collections for point in disc.get_offsets().tolist()]
    assert points == [(60.0, 88.0), (3.0, 83.0)]


def test_per_class_scores_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    predicted = torch.tensor([0, 0, 1, 1])
    table = tables.per_class(labels, predicted).set_index("class")
    assert table.loc["T-shirt/top", "precision"] == 1
    assert table.loc["T-shirt/top", "recall"] == pytest.approx(2 / 3)
    assert table.loc["Trouser", "precision"] == 0.5
    assert table.loc["Trouser", "f1"] == pytest.approx(2 / 3)
    assert table.loc["Bag", "precision"] == 0
    assert table["images"].tolist()[:2] == [3, 1]
