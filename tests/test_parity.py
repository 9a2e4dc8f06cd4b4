"""With PyTorch's kernels our loop ends with exactly the weights of the lab's loop."""

import pytest
import torch

from benchmarks.lab import run_lab
from fashion import engine, models
from fashion.data import FashionMNIST, Subset
from fashion.recipe import Recipe

# The lab's accuracies in percent, as it prints them: the mean over the test set's batches.
LAB_ACCURACY = {"baseline": 83.43, "nonlinear": 75.02, "cnn": 88.48}


def batch_mean_accuracy(logits: torch.Tensor, test: Subset) -> float:
    batches = zip(logits.split(32), test.labels.split(32), strict=True)
    means = [(batch.argmax(dim=1) == labels).double().mean().item() for batch, labels in batches]
    return sum(means) / len(means)


def assert_same_weights(ours: torch.nn.Module, labs: torch.nn.Module) -> None:
    for our_weights, lab_weights in zip(ours.parameters(), labs.parameters(), strict=True):
        assert torch.equal(our_weights, lab_weights)


@pytest.mark.parametrize("name", LAB_ACCURACY)
@pytest.mark.parametrize("epochs", [1, 2])
def test_the_weights_are_the_labs_on_a_few_thousand_images(
    small: FashionMNIST, name: str, epochs: int
) -> None:
    lab = run_lab(name, small, epochs)
    model = models.build(name, seed=42)
    list(engine.train(model, small.train, Recipe(epochs=epochs, kernels="torch")))
    assert_same_weights(model, lab.model)


def test_another_seed_gives_other_weights(small: FashionMNIST) -> None:
    lab = run_lab("baseline", small, epochs=1, seed=43)
    model = models.build("baseline", seed=42)
    list(engine.train(model, small.train, Recipe(epochs=1, kernels="torch")))
    with pytest.raises(AssertionError):
        assert_same_weights(model, lab.model)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAB_ACCURACY)
def test_the_full_recipe_gives_the_labs_accuracy_and_weights(
    dataset: FashionMNIST, name: str
) -> None:
    training, _ = dataset.split(0)
    model = models.build(name, seed=42)
    list(engine.train(model, training, Recipe(kernels="torch")))
    test = engine.evaluate(model, dataset.test)
    accuracy = batch_mean_accuracy(test.logits, dataset.test)
    assert round(100 * accuracy, 2) == LAB_ACCURACY[name]
    if name != "cnn":  # the lab's own CNN takes two minutes more
        assert_same_weights(model, run_lab(name, dataset, epochs=3).model)
