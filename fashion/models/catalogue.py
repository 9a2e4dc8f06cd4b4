"""The lab's three models, what its second one is without the handicap, and greater ones.

To add a model of your own: write its constructor here and name it in `MODELS`.
Every model maps float32 images of shape (N, 1, 28, 28) in [0, 1] to logits of shape (N, 10).
"""

import inspect
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import nn

from fashion.models.compact import CompactVGG
from fashion.models.lab import TinyVGG, baseline, nonlinear, nonlinear_fixed
from fashion.models.resnet import ResNet
from fashion.settings.experiment import THE_LABS, Architecture

MODELS: dict[str, Callable[..., nn.Module]] = {
    "baseline": baseline,
    "nonlinear": nonlinear,
    "nonlinear-fixed": nonlinear_fixed,
    "cnn": TinyVGG,
    "compact": CompactVGG,
    "resnet": ResNet,
}
# Before the name of one of torchvision's classifiers.
TORCHVISION = "torchvision:"


def constructor(name: str) -> Callable[..., nn.Module]:
    """Return what makes the model called `name`: one of `MODELS`, or torchvision:resnet18 and such.

    Raises:
        KeyError: no model has this name.
    """
    if not name.startswith(TORCHVISION):
        return MODELS[name]
    from fashion.models import adapted  # importing torchvision takes seconds

    member = name.removeprefix(TORCHVISION)
    if member not in adapted.names():
        raise KeyError(name)
    return partial(adapted.Adapted, member)


def options_of(name: str, architecture: Architecture) -> dict[str, Any]:
    """Return the arguments of the constructor of the model called `name`.

    Raises:
        KeyError: no model has this name.
        ValueError: `architecture` asks for an option that the model does not have.
    """
    known = inspect.signature(constructor(name)).parameters
    options = asdict(architecture)
    for option, default in asdict(THE_LABS).items():
        if option not in known and options.pop(option) != default:
            raise ValueError(f"{name} has no option {option}")
    return options


def build(name: str, seed: int, architecture: Architecture = THE_LABS) -> nn.Module:
    """Return the model called `name`, its weights drawn from `seed`, on the CPU.

    The caller's random state is left as it was.

    Raises:
        KeyError, ValueError: as for `options_of`.
        ModelError: as for `vision.Adapted`.
    """
    options = options_of(name, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return constructor(name)(**options)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
