"""The lab's three models, what its second one is without the handicap, and greater ones.

To add a model of your own: write its constructor here and name it in `MODELS`.
Every model maps float32 images of shape (N, 1, 28, 28) in [0, 1] to logits of shape (N, 10).
"""

import inspect
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fashion.data import CLASSES, IMAGE_SHAPE


def baseline(hidden_units: int = 10) -> nn.Module:
    """V0: two linear layers with nothing between them, so a linear classifier."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(IMAGE_SHAPE), hidden_units),
        nn.Linear(hidden_units, len(CLASSES)),
    )


def nonlinear(hidden_units: int = 10) -> nn.Module:
    """V1: a ReLU after each linear layer.

    The last one clamps the logits at zero, and a class whose logit it clamps gets no gradient:
    the handicap is the lesson.
    """
    return nn.Sequential(*_one_hidden_layer(hidden_units), nn.ReLU())


def nonlinear_fixed(hidden_units: int = 10) -> nn.Module:
    """V1 without its last ReLU: what the handicap costs."""
    return nn.Sequential(*_one_hidden_layer(hidden_units))


def _one_hidden_layer(hidden_units: int) -> list[nn.Module]:
    return [
        nn.Flatten(),
        nn.Linear(math.prod(IMAGE_SHAPE), hidden_units),
        nn.ReLU(),
        nn.Linear(hidden_units, len(CLASSES)),
    ]


class TinyVGG(nn.Sequential):
    """V2: blocks of two 3x3 convolutions and a max-pooling, as in the CNN Explainer.

    Source: Wang et al., "CNN Explainer" (arXiv:2004.15004), https://poloclub.github.io/cnn-explainer.

    Args:
        hidden_units: channels of every convolution.
        blocks: 1 to 4; each halves height and width.
        dropout: probability with which a feature is dropped before the classifier.
        batch_norm: normalise after each convolution.
    """

    def __init__(
        self,
        hidden_units: int = 10,
        blocks: int = 2,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        size = IMAGE_SHAPE[-1] // 2**blocks
        channels = [IMAGE_SHAPE[0], *[hidden_units] * blocks]
        layers: dict[str, nn.Module] = {}
        for number, (inputs, outputs) in enumerate(pairwise(channels), start=1):
            layers[f"block_{number}"] = nn.Sequential(
                *self._convolution(inputs, outputs, batch_norm),
                *self._convolution(outputs, outputs, batch_norm),
                nn.MaxPool2d(2),
            )
        layers["classifier"] = nn.Sequential(
            nn.Flatten(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(hidden_units * size**2, len(CLASSES)),
        )
        super().__init__(OrderedDict(layers))

    @staticmethod
    def _convolution(inputs: int, outputs: int, batch_norm: bool) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
        return [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), *norm, nn.ReLU()]


class CompactVGG(nn.Sequential):
    """Five convolutions that a CPU is through with quickly.

    Pooling comes before normalisation and ReLU, which then have a quarter of the work; the last
    pooling takes the greatest value of each channel wherever it is.

    Args:
        hidden_units: channels of the first of three blocks; each further one has as many more.
        dropout: probability with which a channel is dropped before the classifier.
    """

    def __init__(self, hidden_units: int = 16, dropout: float = 0.0) -> None:
        first, second, third = hidden_units, 2 * hidden_units, 3 * hidden_units
        super().__init__(
            *self._convolution(IMAGE_SHAPE[0], first, pool=True),
            *self._convolution(first, second),
            *self._convolution(second, second, pool=True),
            *self._convolution(second, third),
            *self._convolution(third, third),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(third, len(CLASSES)),
        )

    @staticmethod
    def _convolution(inputs: int, outputs: int, pool: bool = False) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False),
            *([nn.MaxPool2d(2)] if pool else []),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]


class ResNet(nn.Sequential):
    """A residual network for small images.

    Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition"
    (arXiv:1512.03385), section 4.2: 16 hidden units and 3 blocks are its ResNet-20.

    Args:
        hidden_units: channels of the first of three stages; each further one has twice as many,
            at half the height and width.
        blocks: residual blocks of each stage, of two 3x3 convolutions each.
        dropout: probability with which a feature is dropped before the classifier.
    """

    def __init__(self, hidden_units: int = 16, blocks: int = 2, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(IMAGE_SHAPE[0], hidden_units, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(hidden_units),
            nn.ReLU(),
        ]
        inputs = hidden_units
        for outputs in (hidden_units, 2 * hidden_units, 4 * hidden_units):
            for _ in range(blocks):
                layers.append(_Residual(inputs, outputs))
                inputs = outputs
        super().__init__(
            *layers,
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(inputs, len(CLASSES)),
        )


class _Residual(nn.Module):
    """Two convolutions beside a shortcut, which is a 1x1 convolution where the shape changes.

    The shortcut leaves out rows and columns before its convolution: where a 1x1 convolution of
    less than 8 channels has a stride, oneDNN's gradient is wrong on a CPU without AVX-512, and it
    writes where it may not (torch 2.15.0, channels_last).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.convolutions = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.MaxPool2d(1, stride=stride),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convolutions(x) + self.shortcut(x))


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
    from fashion import vision  # importing torchvision takes seconds

    member = name.removeprefix(TORCHVISION)
    if member not in vision.names():
        raise KeyError(name)
    return partial(vision.Adapted, member)


@dataclass(frozen=True)
class Architecture:
    """What determines a network, apart from which it is. Its constructor says what each means."""

    hidden_units: int = 10
    blocks: int = 2
    dropout: float = 0.0
    batch_norm: bool = False
    pretrained: str = ""


THE_LABS = Architecture()


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
