"""A residual network for small images."""

from torch import Tensor, nn
from torch.nn import functional as F

from fashion.settings.task import FASHION_MNIST, Task


class ResNet(nn.Sequential):
    """A residual network for small images.

    Source: He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition"
    (arXiv:1512.03385), section 4.2: 16 hidden units and 3 blocks are its ResNet-20.

    Args:
        hidden_units: channels of the first of three stages; each stage doubles the channels and
            halves height and width.
        blocks: residual blocks per stage, each with two 3x3 convolutions.
        dropout: probability of dropping a feature before the classifier.
        task: the images and classes.
    """

    def __init__(
        self,
        hidden_units: int = 16,
        blocks: int = 2,
        dropout: float = 0.0,
        task: Task = FASHION_MNIST,
    ) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(task.channels, hidden_units, kernel_size=3, padding=1, bias=False),
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
            nn.Linear(inputs, len(task.classes)),
        )


class _Residual(nn.Module):
    """Two convolutions with a shortcut, which has a 1x1 convolution if the shape changes.

    The shortcut subsamples before its convolution instead of using a stride: for strided 1x1
    convolutions with less than 8 channels, oneDNN computes wrong gradients on CPUs without AVX-512
    and writes out of bounds (torch 2.15.0, channels_last).
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
