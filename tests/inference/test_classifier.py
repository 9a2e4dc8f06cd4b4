"""A model is measured on the data of its task only."""

from dataclasses import replace

import pytest

from fashion.inference.classifier import ForeignModelError, check_data
from fashion.settings.task import FASHION_MNIST, Task

TOYS = Task("toys", "To\nys", ("ant", "bee"), (3, 64, 64))


def refusal(task: Task, data: Task) -> str:
    with pytest.raises(ForeignModelError) as refused:
        check_data("mine", task, data)
    return str(refused.value)


def test_what_to_add_depends_on_what_differs() -> None:
    assert refusal(TOYS, FASHION_MNIST) == (
        r"mine classifies To\nys (3x64x64, 2 classes), not Fashion-MNIST (1x28x28, 10 classes):"
        " add data=..."
    )
    assert refusal(TOYS, replace(TOYS, shape=(3, 32, 32))).endswith(": add image_size=64")
    assert refusal(TOYS, replace(TOYS, shape=(1, 64, 64))).endswith(": add data=...")
    others = replace(TOYS, classes=("bee", "ant"))
    assert "not those of other classes" in refusal(TOYS, others)


def test_data_of_another_name_may_be_of_the_same_task() -> None:
    check_data("mine", TOYS, replace(TOYS, name="others", title="Others", mean=(0.1, 0.2, 0.3)))
