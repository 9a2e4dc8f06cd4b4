"""Networks, batches and numbers of threads drawn at random: the native kernels' step is PyTorch's.

`test_sanitizers.py` runs this file once more with kernels that check each access to memory.
"""

import copy
import itertools
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fashion.models import catalogue
from fashion.models.lab import TinyVGG
from fashion.settings.experiment import Architecture
from fashion.training.kernels import conv3x3, mlp

pytestmark = pytest.mark.usefixtures("native_kernels")


def assert_step_is_pytorchs(
    model: nn.Module, stepped: nn.Module, images: torch.Tensor, targets: torch.Tensor, lr: float
) -> None:
    """Check the step from `model` to `stepped` against one in float64, which rounds little."""
    exact = copy.deepcopy(model).double()
    loss = F.cross_entropy(exact(images.double()), targets)
    gradients = torch.autograd.grad(loss, list(exact.parameters()))
    for before, after, gradient in zip(
        model.parameters(), stepped.parameters(), gradients, strict=True
    ):
        error = (before.double() - after.double()) / lr - gradient
        # Which of two nearly equal values in a window is the greater depends on rounding.
        assert error.norm() <= 1e-2 * gradient.norm() + 1e-5


def draw_batch(draw: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    size = draw.randint(1, 70)
    return torch.rand(size, 1, 28, 28), torch.randint(0, 10, (size,))


def draw_cnn(seed: int) -> tuple[TinyVGG, torch.Tensor, torch.Tensor, int]:
    """Return a network, a batch, and a number of threads."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = catalogue.build("cnn", seed, Architecture(draw.randint(1, conv3x3.MAX_CHANNELS)))
    assert conv3x3.supports(model)
    return model, *draw_batch(draw), draw.randint(1, 4)


@pytest.mark.parametrize("seed", range(12))
def test_a_step_of_the_cnn(seed: int) -> None:
    model, images, targets, threads = draw_cnn(seed)
    assert conv3x3.supports_pass(model)
    stepped = copy.deepcopy(model)
    conv3x3.make_pass(stepped, lr=0.5, threads=threads)([(images, targets)])
    assert_step_is_pytorchs(model, stepped, images, targets, lr=0.5)


@pytest.mark.parametrize("seed", range(12))
def test_a_step_by_autograd_of_the_cnns_features(seed: int) -> None:
    model, images, targets, threads = draw_cnn(seed)
    logits = conv3x3.forward(model, images, threads=threads)
    stepped = copy.deepcopy(model)
    for parameter, gradient in zip(
        stepped.parameters(),
        torch.autograd.grad(F.cross_entropy(logits, targets), list(model.parameters())),
        strict=True,
    ):
        parameter.detach().sub_(gradient)
    assert_step_is_pytorchs(model, stepped, images, targets, lr=1)


@pytest.mark.parametrize("seed", range(24))
def test_a_step_of_linear_layers(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    hidden = [draw.randint(1, mlp.MAX_WIDTH) for _ in range(draw.randint(0, 3))]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in itertools.pairwise([28 * 28, *hidden, 10]):
        layers += [nn.Linear(inputs, outputs), *[nn.ReLU()] * draw.randint(0, 1)]
    model = nn.Sequential(*layers)
    images, targets = draw_batch(draw)
    assert mlp.supports_native(model)
    stepped = copy.deepcopy(model)
    mlp.make_native_pass(stepped, lr=0.5)([(images, targets)])
    assert_step_is_pytorchs(model, stepped, images, targets, lr=0.5)
