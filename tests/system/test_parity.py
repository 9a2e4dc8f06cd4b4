"""With PyTorch's kernels our loop ends with exactly the weights of the lab's loop."""

from dataclasses import replace

import pytest
import torch

from benchmarks.lab import run_lab
from fashion.data.dataset import Dataset
from fashion.models import catalogue
from fashion.settings.experiment import Recipe
from fashion.training import loop
from tests.conftest import head

MODELS = ("baseline", "nonlinear", "cnn")


def assert_same_weights(ours: torch.nn.Module, labs: torch.nn.Module) -> None:
    for our_weights, lab_weights in zip(ours.parameters(), labs.parameters(), strict=True):
        assert torch.equal(our_weights, lab_weights)


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_the_labs_on_a_few_thousand_images(small: Dataset, name: str) -> None:
    lab = run_lab(name, small, epochs=2)
    model = catalogue.build(name, seed=42)
    list(loop.train(model, small.train, Recipe(epochs=2, kernels="torch")))
    assert_same_weights(model, lab.model)


def test_another_seed_gives_other_weights(small: Dataset) -> None:
    lab = run_lab("baseline", small, epochs=1, seed=43)
    model = catalogue.build("baseline", seed=42)
    list(loop.train(model, small.train, Recipe(epochs=1, kernels="torch")))
    with pytest.raises(AssertionError):
        assert_same_weights(model, lab.model)


@pytest.mark.slow(seconds=300)
def test_the_full_recipe_gives_the_labs_weights(dataset: Dataset) -> None:
    training, _ = dataset.split(0)
    model = catalogue.build("cnn", seed=42)
    list(loop.train(model, training, Recipe(kernels="torch")))
    # The lab evaluates after each epoch, which the weights do not depend on.
    few = replace(dataset, test=head(dataset.test, 100))
    assert_same_weights(model, run_lab("cnn", few, epochs=3).model)
