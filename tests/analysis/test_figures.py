"""The figures show what they were given."""

import math

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from fashion.analysis import figures, summary, tables
from fashion.data.dataset import Dataset, Subset
from fashion.settings.task import FASHION_MNIST, Task

CLASSES = FASHION_MNIST.classes


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_the_grid_shows_each_image_with_its_classes_right_in_green_wrong_in_red(
    dataset: Dataset,
) -> None:
    images = dataset.test.images[:9]
    true = [CLASSES[label] for label in dataset.test.labels[:9]]
    predicted = ["Bag", *true[1:]]
    figure = figures.prediction_grid(images, predicted, true, "nine")
    assert len(figure.axes) == 9
    for index, axes in enumerate(figure.axes):
        (shown,) = axes.get_images()
        assert (shown.get_array() == images[index, 0].numpy()).all()
        (title,) = (text for text in axes.findobj(Text) if text.get_text())
        assert title.get_text() == f"predicted: {predicted[index]}\ntrue: {true[index]}"
        assert title.get_color() == (figures.RIGHT if index else figures.WRONG)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_grid_takes_any_number_of_images(dataset: Dataset, count: int) -> None:
    images = dataset.test.images[:count]
    figure = figures.prediction_grid(images, ["Bag"] * count, None, "some")
    assert sum(len(axes.get_images()) for axes in figure.axes) == count


def test_a_grid_says_how_sure_the_model_was(dataset: Dataset) -> None:
    figure = figures.prediction_grid(
        dataset.test.images[:1], ["Bag"], ["Coat"], "one", confidence=[0.987]
    )
    assert figure.axes[0].get_title(loc="left") == "predicted: Bag (99%)\ntrue: Coat"


def test_a_reliability_diagram_has_a_bar_a_bin_and_says_the_error(dataset: Dataset) -> None:
    labels = dataset.test.labels
    # Sure to 80 % of the class that comes next, which is right for nobody, or of the true one.
    answers = torch.nn.functional.one_hot(labels, 10).double() * 0.78 + 0.022
    answers[:2500] = answers[:2500].roll(1, dims=1)
    table = tables.calibration(labels, answers.log(), bins=10)
    upper, lower = figures.reliability_diagram(table, "title").axes
    heights = [bar.get_height() for bar in upper.patches]
    assert heights[7:9] == pytest.approx([math.nan, 0.75], nan_ok=True)
    assert [bar.get_height() for bar in lower.patches] == [0] * 8 + [10_000, 0]
    assert "5.20%" in upper.get_title(loc="left")


def test_a_bin_with_few_images_has_a_wide_interval() -> None:
    table = pd.DataFrame(
        {
            "above": [0.0, 0.5],
            "up_to": [0.5, 1.0],
            "images": [4, 4000],
            "confidence": [0.4, 0.9],
            "accuracy": [0.5, 0.9],
        }
    )
    upper, _ = figures.reliability_diagram(table, "title").axes
    few, many = (segment[1][1] - segment[0][1] for segment in upper.collections[0].get_segments())
    # Wilson's interval for 2 of 4 is 15 % to 85 %.
    assert few == pytest.approx(0.70, abs=0.01)
    assert many < 0.02


def test_each_class_has_its_precision_recall_curve_the_hardest_first(
    dataset: Dataset,
) -> None:
    labels = dataset.test.labels
    logits = torch.nn.functional.one_hot(labels, 10).float()
    logits[labels == 6] = logits[labels == 0][0]
    axes = figures.precision_recall_curves(labels, logits.softmax(dim=1), CLASSES, "title").axes
    titles = [each.get_title(loc="left").split("\n") for each in axes]
    assert sorted(name for name, _ in titles) == sorted(CLASSES)
    assert titles[0][0] == "Shirt"
    assert titles[-1][1] == "average precision 100.0%"


def test_the_confusion_matrix_shows_every_count_and_recall(dataset: Dataset) -> None:
    labels = dataset.test.labels
    predicted = labels.clone()
    predicted[labels == 6] = 0
    confusion = tables.confusion_matrix(labels, predicted, CLASSES)
    figure = figures.confusion_matrix(confusion, "title")
    assert sorted(texts(figure)) == ["1000"] * 10
    recalls = [label.get_text().split("  ") for label in figure.axes[0].get_yticklabels()]
    assert recalls == [[name, "0.0%" if name == "Shirt" else "100.0%"] for name in CLASSES]
    assert str(tables.confused_pairs(confusion)[0]) == "Shirt mistaken as T-shirt/top: 1000 times"


def test_a_confusion_matrix_without_errors_or_images_is_drawn() -> None:
    labels = torch.arange(9)
    figure = figures.confusion_matrix(tables.confusion_matrix(labels, labels, CLASSES), "title")
    figure.draw_without_rendering()
    assert figure.axes[0].get_yticklabels()[9].get_text() == "Ankle boot  no images"


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
    assert points == [(60.0, 0.88), (3.0, 0.83)]
    assert texts(axes.figure) == ["cnn\n7,740 parameters", "baseline\n7,960 parameters"]


def test_per_class_scores_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    predicted = torch.tensor([0, 0, 1, 1])
    table = tables.per_class(labels, predicted, CLASSES).set_index("class")
    assert table.loc["T-shirt/top", "precision"] == 1
    assert table.loc["T-shirt/top", "recall"] == pytest.approx(2 / 3)
    assert table.loc["Trouser", "precision"] == 0.5
    assert table.loc["Trouser", "f1"] == pytest.approx(2 / 3)
    assert table.loc["Bag", "precision"] == 0
    assert table["images"].tolist()[:2] == [3, 1]


def pictures(classes: int, channels: int = 3, each: int = 3) -> Subset:
    """Return random images of 8x12 pixels, `each` of every class but the last, which has none."""
    task = Task("pictures", "Pictures", tuple(map(str, range(classes))), (channels, 8, 12))
    labels = torch.arange(classes - 1).repeat(each)
    shape = (len(labels), *task.shape)
    images = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
    return Subset("pictures", images.to(torch.uint8), labels, "", task)


def contact_sheet(subset: Subset, each: int = 10) -> Figure:
    counts = subset.labels.bincount(minlength=len(subset.task.classes)).tolist()
    return figures.contact_sheet(summary.examples(subset, each), counts, subset.task)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_contact_sheet_shows_the_first_images_of_each_class(channels: int) -> None:
    subset = pictures(4, channels)
    (axes,) = contact_sheet(subset, each=2).axes
    (shown,) = axes.get_images()
    # Between them are white gaps of one pixel.
    sheet = torch.from_numpy(shown.get_array().data).view(4, 9, 2, 13, channels)
    second = subset.images[subset.labels == 2][1].permute(1, 2, 0)
    assert torch.equal(sheet[2, :8, 1, :12], second)
    assert (sheet[:, 8] == 255).all()
    assert (sheet[3] == 255).all()
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["0  3", "1  3", "2  3", "3  0"]


def test_of_many_classes_a_confusion_matrix_shows_those_that_are_confused() -> None:
    classes = [f"class {number}" for number in range(200)]
    labels = torch.arange(200).repeat(3)
    predicted = labels.clone()
    predicted[7], predicted[100] = 150, 199
    figure = figures.confusion_matrix(tables.confusion_matrix(labels, predicted, classes), "title")
    drawn = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(drawn) == 20
    assert {"class 7", "class 100", "class 150", "class 199"} <= {*drawn}
    assert "20 of 200 classes" in figure.axes[0].get_title(loc="left")


@pytest.mark.parametrize("classes", [2, 3, 200])
def test_figures_of_any_number_of_classes_are_drawn(classes: int) -> None:
    names = [f"class {number}" for number in range(classes)]
    labels = torch.arange(classes).repeat(4)
    logits = torch.rand(len(labels), classes, generator=torch.Generator().manual_seed(0))
    confusion = tables.confusion_matrix(labels, logits.argmax(dim=1), names)
    figures.confusion_matrix(confusion, "title").draw_without_rendering()
    curves = figures.precision_recall_curves(labels, logits.softmax(dim=1), names, "title")
    curves.draw_without_rendering()
    assert sum(bool(axes.lines) for axes in curves.axes) == min(classes, 20)
    contact_sheet(pictures(classes)).draw_without_rendering()
