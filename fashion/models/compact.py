"""A small network that trains quickly on a CPU."""

from torch import nn

from fashion.models.whitening import Whitening
from fashion.settings.task import FASHION_MNIST, Task


class CompactVGG(nn.Sequential):
    """Five convolutions, designed for fast training on a CPU.

    Pooling comes before normalisation and ReLU, which reduces their work to a quarter; the last
    pooling is a global max-pooling.

    Args:
        hidden_units: channels of the first of three blocks; the others have two and three times as
            many.
        dropout: probability of dropping a channel before the classifier.
        whiten: use `Whitening` instead of the first convolution.
        task: the images and classes.
    """

    def __init__(
        self,
        hidden_units: int = 16,
        dropout: float = 0.0,
        whiten: bool = False,
        task: Task = FASHION_MNIST,
    ) -> None:
        first, second, third = hidden_units, 2 * hidden_units, 3 * hidden_units
        layers = self._convolution(task.channels, first, pool=True)
        if whiten:
            whitening = Whitening(task.channels, first)
            first = whitening.out_channels
            layers = [whitening, *self._normalized(first, pool=True)]
        super().__init__(
            *layers,
            *self._convolution(first, second),
            *self._convolution(second, second, pool=True),
            *self._convolution(second, third),
            *self._convolution(third, third),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(third, len(task.classes)),
        )

    @classmethod
    def _convolution(cls, inputs: int, outputs: int, pool: bool = False) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        return [convolution, *cls._normalized(outputs, pool)]

    @staticmethod
    def _normalized(channels: int, pool: bool) -> list[nn.Module]:
        """Return what follows a convolution."""
        pooling = [nn.MaxPool2d(2)] if pool else []
        return [*pooling, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
