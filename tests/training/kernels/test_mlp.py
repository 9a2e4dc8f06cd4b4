"""The linear models' step without autograd is autograd's: to the bit or, in C, within rounding."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fashion.data.dataset import Dataset, Subset, to_float
from fashion.settings.experiment import Recipe
from fashion.training import loop
from fashion.training.kernels import mlp
from fashion.training.kernels.choose import choose
from tests.conftest import head


def linear(*widths: int, last: bool = False) -> nn.Sequential:
    """Return Linear layers with a ReLU between each two and, if `last`, after the last too."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers if last else layers[:-1])


def train_by_autograd(model: nn.Module, data: Subset, recipe: Recipe) -> float:
    """Train for one epoch; return the accuracy as `engine.train` measures it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr)
    correct = 0
    for rows in next(loop.shuffled_orders(len(data), recipe.seed)).split(recipe.batch_size):
        logits = model(to_float(data.images[rows]))
        optimizer.zero_grad()
        F.cross_entropy(logits, data.labels[rows]).backward()
        optimizer.step()
        correct += (logits.argmax(dim=1) == data.labels[rows]).sum().item()
    return correct / len(data)


@pytest.mark.parametrize("widths", [(784, 10), (784, 17, 10), (784, 32, 16, 10)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 96])
@pytest.mark.parametrize("kernels", ["torch", "native"])
def test_a_pass_ends_with_autograds_weights(
    small: Dataset,
    widths: tuple[int, ...],
    last: bool,
    batch_size: int,
    kernels: str,
    request: pytest.FixtureRequest,
) -> None:
    if kernels == "native":
        request.getfixturevalue("native_kernels")
    torch.manual_seed(1)
    model, reference = linear(*widths, last=last), linear(*widths, last=last)
    reference.load_state_dict(model.state_dict())
    data = head(small.train, 300)
    # At the lab's rate rounding is magnified from step to step: only the same bits stay together.
    lr = 0.1 if kernels == "torch" else 0.005
    recipe = Recipe(epochs=1, batch_size=batch_size, lr=lr, kernels=kernels)
    assert mlp.supports(model)
    assert choose(model, recipe).name == kernels
    (epoch,) = loop.train(model, data, recipe)
    accuracy = train_by_autograd(reference, data, recipe)
    for ours, expected in zip(model.parameters(), reference.parameters(), strict=True):
        if kernels == "torch":
            assert torch.equal(ours, expected)
        else:
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)
    assert epoch.accuracy == accuracy


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.5)),
        nn.Sequential(nn.Linear(784, 10), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.ReLU(), nn.Linear(784, 10)),
        nn.Linear(784, 10),
    ],
)
def test_it_serves_nothing_else(model: nn.Module) -> None:
    assert not mlp.supports(model)


def test_wide_layers_and_other_dtypes_are_left_to_pytorch() -> None:
    assert mlp.supports_native(linear(784, mlp.MAX_WIDTH, 10))
    assert not mlp.supports_native(linear(784, mlp.MAX_WIDTH + 1, 10))
    assert not mlp.supports_native(linear(784, 10).double())


@pytest.mark.usefixtures("native_kernels")
def test_a_diverging_training_is_seen_to_diverge(small: Dataset) -> None:
    for last in (False, True):
        model = linear(784, 10, 10, last=last)
        epochs = list(loop.train(model, small.train, Recipe(epochs=2, lr=1e30, kernels="native")))
        assert math.isnan(epochs[-1].loss)


@pytest.mark.usefixtures("native_kernels")
def test_a_pass_keeps_what_it_trains_alive_and_finds_it_where_it_is(small: Dataset) -> None:
    batches = [(to_float(small.train.images[:32]), small.train.labels[:32])] * 200
    train_pass = mlp.make_native_pass(linear(784, 10, 10), lr=0.1)
    logits = train_pass(batches)
    targets = small.train.labels[:32]
    assert F.cross_entropy(logits[-32:], targets) < F.cross_entropy(logits[:32], targets)

    model = linear(784, 10)
    train_pass = mlp.make_native_pass(model, lr=0.1)
    model.load_state_dict(
        {name: torch.zeros_like(p) for name, p in model.state_dict().items()}, assign=True
    )
    assert torch.equal(train_pass(batches[:1]), torch.zeros(32, 10))
    assert model[1].weight.abs().sum() > 0


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("last", [False, True])
def test_nan_in_a_weight_spreads_as_in_pytorch(last: bool) -> None:
    batch = torch.rand(8, 1, 28, 28), torch.arange(8)

    def spoilt_by(make_pass: Callable[..., Any]) -> list[torch.Tensor]:
        torch.manual_seed(1)
        model = linear(784, 10, 10, last=last)
        model[1].weight.detach()[3, 0] = math.nan
        return [make_pass(model, 0.1)([batch]).isnan(), *(p.isnan() for p in model.parameters())]

    native, pytorchs = spoilt_by(mlp.make_native_pass), spoilt_by(mlp.make_pass)
    assert pytorchs[2].any()
    assert all(map(torch.equal, native, pytorchs))
