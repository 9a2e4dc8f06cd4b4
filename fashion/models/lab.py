"""The lab's three models, and a corrected version of the second one."""

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from fashion.errors import ModelError
from fashion.settings.task import FASHION_MNIST, Task


def baseline(hidden_units: int = 10, task: Task = FASHION_MNIST) -> nn.Module:
    """V0: two linear layers without activation between them, so a linear classifier."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(task.pixels, hidden_units),
        nn.Linear(hidden_units, len(task.classes)),
    )


def nonlinear(hidden_units: int = 10, task: Task = FASHION_MNIST) -> nn.Module:
    """V1: a ReLU after each linear layer.

    The last ReLU clamps the logits at zero, and clamped logits get no gradient. This mistake is
    part of the lab.
    """
    return nn.Sequential(*_one_hidden_layer(hidden_units, task), nn.ReLU())


def nonlinear_fixed(hidden_units: int = 10, task: Task = FASHION_MNIST) -> nn.Module:
    """V1 without the last ReLU, to show its effect."""
    return nn.Sequential(*_one_hidden_layer(hidden_units, task))


def _one_hidden_layer(hidden_units: int, task: Task) -> list[nn.Module]:
    return [
        nn.Flatten(),
        nn.Linear(task.pixels, hidden_units),
        nn.ReLU(),
        nn.Linear(hidden_units, len(task.classes)),
    ]


class TinyVGG(nn.Sequential):
    """V2: blocks of two 3x3 convolutions and a max-pooling, as in the CNN Explainer.

    Source: Wang et al., "CNN Explainer" (arXiv:2004.15004), https://poloclub.github.io/cnn-explainer.

    Args:
        hidden_units: channels of every convolution.
        blocks: number of blocks, 1 to 4; each halves height and width.
        dropout: probability of dropping a feature before the classifier.
        batch_norm: add batch normalisation after each convolution.
        task: the images and classes.

    Raises:
        ModelError: the images are too small for the blocks.
    """

    def __init__(
        self,
        hidden_units: int = 10,
        blocks: int = 2,
        dropout: float = 0.0,
        batch_norm: bool = False,
        task: Task = FASHION_MNIST,
    ) -> None:
        height, width = (size // 2**blocks for size in task.shape[1:])
        if not height * width:
            raise ModelError(
                f"{blocks} blocks of the cnn need images of {2**blocks}x{2**blocks} pixels or more,"
                f" not {task.size}: set blocks or image_size"
            )
        channels = [task.channels, *[hidden_units] * blocks]
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
            nn.Linear(hidden_units * height * width, len(task.classes)),
        )
        super().__init__(OrderedDict(layers))

    @staticmethod
    def _convolution(inputs: int, outputs: int, batch_norm: bool) -> list[nn.Module]:
        norm = [nn.BatchNorm2d(outputs)] if batch_norm else []
        return [nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), *norm, nn.ReLU()]
