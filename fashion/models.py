"""The lab's three models, and what its second one is without the handicap.

To add a model of your own: write its constructor here and name it in `MODELS`.
Every model maps float32 images of shape (N, 1, 28, 28) in [0, 1] to logits of shape (N, 10).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

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


class TinyVGG(nn.Module):
    """V2: two blocks of two 3x3 convolutions, as in the CNN Explainer.

    Source: Wang et al., "CNN Explainer" (arXiv:2004.15004), https://poloclub.github.io/cnn-explainer.
    """

    def __init__(self, hidden_units: int = 10) -> None:
        super().__init__()
        self.block_1 = self._block(IMAGE_SHAPE[0], hidden_units)
        self.block_2 = self._block(hidden_units, hidden_units)
        with torch.no_grad():
            features = self.block_2(self.block_1(torch.zeros(1, *IMAGE_SHAPE))).numel()
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(features, len(CLASSES)))

    @staticmethod
    def _block(in_channels: int, out_channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.block_2(self.block_1(images)))


MODELS: dict[str, Callable[[int], nn.Module]] = {
    "baseline": baseline,
    "nonlinear": nonlinear,
    "nonlinear-fixed": nonlinear_fixed,
    "cnn": TinyVGG,
}


def build(name: str, hidden_units: int, seed: int) -> nn.Module:
    """Return the model called `name`, its weights drawn from `seed`, on the CPU.

    The caller's random state is left as it was.

    Raises:
        KeyError: no model has this name.
    """
    constructor = MODELS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return constructor(hidden_units)


def count_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
