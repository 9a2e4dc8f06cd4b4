"""Augmentation of whole batches where they are, each image with draws of its own.

torchvision's transforms draw once for a batch; they serve one image at a time.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor
from torch.distributions import Beta
from torch.nn import functional as F

from fashion.settings.task import CLASSES

# Pixels by which a shifted image moves at most, either way.
SHIFT = 2
# Of random erasing, as in its paper's section 5.1: how often, which share of the image, how flat.
ERASE_PROBABILITY = 0.5
ERASE_AREA = (0.02, 0.33)
ERASE_ASPECT = (0.3, 3.3)


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror half of the images, left to right."""
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def shift(images: Tensor, generator: Generator) -> Tensor:
    """Move each image by up to `SHIFT` pixels each way; black comes in at the edge."""
    count, _, height, width = images.shape
    padded = F.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT))
    starts = torch.randint(0, 2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows = (starts[0] + torch.arange(height)).to(images.device)
    columns = (starts[1] + torch.arange(width)).to(images.device)
    each = torch.arange(count, device=images.device).view(-1, 1, 1)
    return padded[each, :, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)


def erase(images: Tensor, generator: Generator) -> Tensor:
    """Overwrite a random rectangle of half of the images with noise.

    Source: Zhong et al., "Random Erasing Data Augmentation" (arXiv:1708.04896).
    """
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    area = uniform(*ERASE_AREA) * height * width
    aspect = uniform(*ERASE_ASPECT)
    size = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()]).round()
    size = size.clamp(min=1, max=min(height, width))
    top, left = ((torch.tensor([height, width]).view(2, 1) - size) * torch.stack(
        [uniform(0, 1), uniform(0, 1)]
    )).round()  # fmt: skip
    rows, columns = torch.arange(height), torch.arange(width)
    in_rows = (rows >= top.unsqueeze(1)) & (rows < (top + size[0]).unsqueeze(1))
    in_columns = (columns >= left.unsqueeze(1)) & (columns < (left + size[1]).unsqueeze(1))
    chosen = (torch.rand(count, generator=generator) < ERASE_PROBABILITY).view(-1, 1, 1)
    erased = (chosen & in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)
    noise = torch.rand(images.shape, generator=generator)
    return torch.where(erased.to(images.device), noise.to(images.device), images)


CHANGES: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "flip": flip,
    "shift": shift,
    "erase": erase,
}


class Augmentation:
    """The augmentations called `names`, applied in this order.

    What is drawn follows from `seed` and the batches before.
    """

    def __init__(self, names: Sequence[str], seed: int) -> None:
        self.names = names
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Take and return float32 images (B, 1, height, width) in [0, 1]."""
        for name in self.names:
            images = CHANGES[name](images, self.generator)
        return images

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])


def make_mixup(alpha: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the function that mixes the images of a batch, and their classes likewise.

    It takes images (B, 1, height, width) and int64 targets (B,), and returns images and the shares
    of the classes, float32 (B, 10). Shares are drawn from torch's global generator. At least half
    of an image is its own, so that training accuracy still means something: that is where this
    differs from torchvision's. With `alpha` 0 the function returns what it is given.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (arXiv:1710.09412).
    """
    if not alpha:
        return lambda images, targets: (images, targets)
    distribution = Beta(alpha, alpha)

    def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        share = distribution.sample().item()
        other = min(share, 1 - share)
        classes = F.one_hot(targets, len(CLASSES)).float()
        return images.lerp(images.roll(1, 0), other), classes.lerp(classes.roll(1, 0), other)

    return mix
