"""Build models by name.

To add one, write its constructor in a file beside this one and name it in `MODELS`. Every model
maps float32 images of a task's shape (N, channels, height, width) in [0, 1] to a logit for each
class, (N, classes).
"""

import inspect
from collections.abc import Callable
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from fashion.errors import SettingError
from fashion.settings.experiment import LAB_ARCHITECTURE, Architecture
from fashion.settings.task import FASHION_MNIST, Task

if TYPE_CHECKING:  # the command line lists the models without importing torch
    from torch import nn

# Constructors; their parameters are the task, and the fields of `Architecture` that the model
# supports.
MODELS = {
    "baseline": "fashion.models.lab:baseline",
    "nonlinear": "fashion.models.lab:nonlinear",
    "nonlinear-fixed": "fashion.models.lab:nonlinear_fixed",
    "cnn": "fashion.models.lab:TinyVGG",
    "compact": "fashion.models.compact:CompactVGG",
    "resnet": "fashion.models.resnet:ResNet",
}
# Prefix of the names of torchvision's classifiers.
TORCHVISION = "torchvision:"
KNOWN = f"{', '.join(MODELS)}, or {TORCHVISION}NAME for a classifier of torchvision"


def constructor(name: str) -> "Callable[..., nn.Module]":
    """Return the constructor of the model called `name`.

    Raises:
        SettingError: there is no such model.
    """
    if name in MODELS:
        return resolve_name(MODELS[name])
    from fashion.models import adapted  # importing torchvision takes seconds

    member = name.removeprefix(TORCHVISION)
    if name.startswith(TORCHVISION) and member in adapted.names():
        return partial(adapted.Adapted, member)
    known = [*MODELS, *(f"{TORCHVISION}{each}" for each in adapted.names())]
    meant = [f"{TORCHVISION}{name}"] if name in adapted.names() else get_close_matches(name, known)
    if meant:
        raise SettingError(f"there is no model {name!r}: did you mean {meant[0]}?", "model")
    raise SettingError(f"{name!r} is not one of {KNOWN}", "model")


def options_of(name: str, architecture: Architecture) -> dict[str, Any]:
    """Return the options of `architecture` that the model called `name` supports.

    Raises:
        SettingError: there is no such model, or it does not support an option that is not at its
            default.
    """
    known = inspect.signature(constructor(name)).parameters
    options = asdict(architecture)
    for option, default in asdict(LAB_ARCHITECTURE).items():
        if option not in known and options.pop(option) != default:
            raise SettingError(f"{name} has no option {option}")
    return options


def build(
    name: str,
    seed: int,
    architecture: Architecture = LAB_ARCHITECTURE,
    task: Task = FASHION_MNIST,
) -> "nn.Module":
    """Return the model called `name` on the CPU, with weights initialised from `seed`.

    The global random state does not change.

    Raises:
        SettingError: as for `options_of`.
        ModelError: as for `lab.TinyVGG` and `adapted.Adapted`.
    """
    import torch

    options = options_of(name, architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return constructor(name)(**options, task=task)


def count_parameters(model: "nn.Module") -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
