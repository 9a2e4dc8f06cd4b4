"""A first layer that is computed from the training images and stays fixed."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Number of patches that suffice to estimate the filters: those of 5,000 images of Fashion-MNIST.
PATCHES = 5000 * 28 * 28
# Added to the patches' variances, so that filters of noise are not amplified.
EPSILON = 1e-3


class Whitening(nn.Conv2d):
    """A 3x3 convolution whose outputs are uncorrelated, with a variance of about 1.

    Its filters are the patches' principal components, each with both signs, because a ReLU after
    it passes only one. They are zero until `fit` has computed them.

    Source: section 3.2 of Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
    (arXiv:2404.00498).

    Args:
        channels: those of the images.
        outputs: most channels to return: an even number of them, and at most two for each of a
            patch's values.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        components = min(max(outputs // 2, 1), 9 * channels)
        super().__init__(channels, 2 * components, kernel_size=3, padding=1, bias=False)
        # A buffer is saved with the parameters, but no optimiser updates it.
        shape = self.weight.shape
        del self.weight
        self.register_buffer("weight", torch.zeros(shape))

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Compute the filters from float32 images (N, channels, height, width) in [0, 1]."""
        patches = F.unfold(images, kernel_size=3).transpose(1, 2).flatten(0, 1)
        patches = patches[patches.std(dim=1) > 0]
        variances, directions = torch.linalg.eigh(patches.T @ patches / max(1, len(patches)))
        filters = (directions / (variances + EPSILON).sqrt()).T.flip(0)
        filters = filters[: self.out_channels // 2].view(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))


def fit(model: nn.Module, images: Tensor) -> None:
    """Compute the filters of a model's `Whitening`, if it has one; for the images see there."""
    for layer in model.modules():
        if isinstance(layer, Whitening):
            layer.fit(images)
