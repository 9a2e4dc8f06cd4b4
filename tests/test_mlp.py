"""The linear models' step without autograd is autograd's, bit for bit."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fashion import engine, mlp
from fashion.data import FashionMNIST, to_float
from fashion.recipe import Recipe


def linear(*widths: int, last: bool = False) -> nn.Sequential:
    """Return Linear layers with a ReLU between each two and, if `last`, after the last too."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers if last else layers[:-1])


@pytest.mark.parametrize("widths", [(784, 10), (784, 17, 10), (784, 32, 16, 10)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 7, 96])
def test_a_pass_ends_with_autograds_weights(
    small: FashionMNIST, widths: tuple[int, ...], last: bool, batch_size: int
) -> None:
    torch.manual_seed(1)
    model, reference = linear(*widths, last=last), linear(*widths, last=last)
    reference.load_state_dict(model.state_dict())
    assert mlp.supports(model)
    data = small.train if batch_size > 1 else small.test
    (epoch,) = engine.train(model, data, Recipe(epochs=1, batch_size=batch_size))

    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    correct = 0
    for rows in next(engine.shuffled_orders(len(data), seed=42)).split(batch_size):
        logits = reference(to_float(data.images[rows]))
        optimizer.zero_grad()
        F.cross_entropy(logits, data.labels[rows]).backward()
        optimizer.step()
        correct += (logits.argmax(dim=1) == data.labels[rows]).sum().item()
    for ours, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, expected)
    assert epoch.accuracy == correct / len(data)


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
