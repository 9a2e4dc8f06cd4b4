"""Augment whole batches on their device, with independent random numbers for each image.

torchvision's transforms would use the same random numbers for all images of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.distributions import Beta
from torch.nn import functional as F

# Maximum shift in pixels, in each direction.
SHIFT = 2
# Probability, share of the image's area and aspect ratio, as in section 5.1 of the paper.
ERASE_PROBABILITY = 0.5
ERASE_AREA = (0.02, 0.33)
ERASE_ASPECT = (0.3, 3.3)


@dataclass
class Draws:
    """What augmentations depend on besides the images.

    Attributes:
        generator: of their random numbers, on the device of the images.
        epoch: number of the epoch, from 1; int64, shape (), on the device too.
    """

    generator: Generator
    epoch: Tensor

    def uniform(self, *shape: int) -> Tensor:
        """Return float32 numbers in [0, 1) of this shape."""
        return torch.rand(shape, generator=self.generator, device=self.generator.device)


def flip(images: Tensor, draws: Draws) -> Tensor:
    """Flip each image horizontally with probability 0.5."""
    mirrored = draws.uniform(len(images)) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def alternate(images: Tensor, draws: Draws) -> Tensor:
    """Flip each image horizontally in every other epoch: about half of them in each.

    So the network sees both sides of each image in any two epochs, where random flips would show
    the same side twice to half of them. The parity of an image's grey levels decides whether it is
    among the first to be flipped; augmentations that change them must come later.

    Source: section 3.6 of Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU"
    (arXiv:2404.00498).
    """
    levels = (images * 255).round().flatten(1).sum(1).long()
    mirrored = (levels + draws.epoch) % 2 == 0
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def shift(images: Tensor, draws: Draws) -> Tensor:
    """Shift each image by up to `SHIFT` pixels in each direction, padding with black."""
    count, _, height, width = images.shape
    padded = F.pad(images, (SHIFT, SHIFT, SHIFT, SHIFT))
    device = images.device
    starts = torch.randint(
        0, 2 * SHIFT + 1, (2, count, 1), generator=draws.generator, device=device
    )
    rows = starts[0] + torch.arange(height, device=device)
    columns = starts[1] + torch.arange(width, device=device)
    each = torch.arange(count, device=device).view(-1, 1, 1)
    return padded[each, :, rows.unsqueeze(2), columns.unsqueeze(1)].movedim(-1, 1)


def erase(images: Tensor, draws: Draws) -> Tensor:
    """Overwrite a random rectangle of each image with noise, with `ERASE_PROBABILITY`.

    Source: Zhong et al., "Random Erasing Data Augmentation" (arXiv:1708.04896).
    """
    count, _, height, width = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return (low + (high - low) * draws.uniform(count)).view(-1, 1)

    area = uniform(*ERASE_AREA) * height * width
    aspect = uniform(*ERASE_ASPECT)

    def covered(side: int, length: Tensor) -> Tensor:
        """Return which pixels of each image's side are in its rectangle: bool, (count, side)."""
        length = length.sqrt().round().clamp(min=1, max=min(height, width))
        start = ((side - length) * uniform(0, 1)).round()
        places = torch.arange(side, device=images.device)
        return (places >= start) & (places < start + length)

    rows, columns = covered(height, area * aspect), covered(width, area / aspect)
    chosen = (draws.uniform(count) < ERASE_PROBABILITY).view(-1, 1, 1, 1)
    erased = chosen & (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
    return torch.where(erased, draws.uniform(*images.shape), images)


CHANGES: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "flip": flip,
    "alternate": alternate,
    "shift": shift,
    "erase": erase,
}


class Augmentation:
    """Applies the augmentations `names` in order, on `device`; `seed` makes it reproducible.

    Attributes:
        draws: what they depend on; its epoch is to be set when one begins.
    """

    def __init__(self, names: Sequence[str], seed: int, device: torch.device | str = "cpu") -> None:
        self.names = names
        self.draws = Draws(
            Generator(device).manual_seed(seed),
            torch.ones((), dtype=torch.int64, device=device),
        )

    def __call__(self, images: Tensor) -> Tensor:
        """Return augmented images; float32, shape (B, channels, height, width), in [0, 1]."""
        for name in self.names:
            images = CHANGES[name](images, self.draws)
        return images

    def state_dict(self) -> dict[str, Tensor]:
        return {"generator": self.draws.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.draws.generator.set_state(state["generator"])


def make_mixup(
    alpha: float, classes: int, device: torch.device | str = "cpu"
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a function that mixes images and targets within a batch.

    It takes images (B, channels, height, width) and int64 targets (B,), and returns mixed images
    and class probabilities, float32 (B, classes). The weight is drawn from torch's generator of
    `device`. Unlike in torchvision, an image's own weight is at least half, so that training
    accuracy stays meaningful. With `alpha` 0 the function returns its arguments.

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization" (arXiv:1710.09412).
    """
    if not alpha:
        return lambda images, targets: (images, targets)
    distribution = Beta(*torch.full((2,), float(alpha), device=device))

    def mix(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        share = distribution.sample()
        other = torch.minimum(share, 1 - share)
        shares = F.one_hot(targets, classes).float()
        return images.lerp(images.roll(1, 0), other), shares.lerp(shares.roll(1, 0), other)

    return mix
