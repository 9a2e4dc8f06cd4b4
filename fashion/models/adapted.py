"""torchvision's classifiers, adapted to the dataset's images and classes."""

import pickle
from copy import deepcopy
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from fashion.errors import ModelError
from fashion.settings.task import CLASSES, IMAGE_SHAPE

# What torchvision's own weights were trained with, of red, green and blue.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Adapted(nn.Module):
    """A network for colour images, given grey ones.

    Grey is its red, green and blue. Its first convolution, where it has a stride of 2, gets one of
    1: its further layers were made for images eight times as large.

    Args:
        name: of a classifier of torchvision.models.
        pretrained: a file of weights for its 1,000 ImageNet classes, as torchvision writes them;
            "default" for torchvision's best, from its cache or the network; "" for none.

    Raises:
        ModelError: it cannot be adapted, or its weights cannot be had.
    """

    def __init__(self, name: str, pretrained: str = "") -> None:
        super().__init__()
        # Some draw initial weights for minutes unless told that others follow.
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(name, weights=None, **options)
        if pretrained:
            _load(network, name, pretrained)
        self.mean: Tensor
        self.std: Tensor
        # Not torchvision's Normalize, which torch.export cannot follow.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.network = _with_classes(network, len(CLASSES))
        first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        if first.stride == (2, 2):
            first.stride = (1, 1)
        self._check(name)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)

    def _check(self, name: str) -> None:
        """Raise ModelError unless images give logits."""
        # A copy, as batch normalisation would remember these images.
        network = deepcopy(self).train()
        try:
            with torch.no_grad():
                logits = network(torch.zeros(2, *IMAGE_SHAPE))
            fits = logits.shape == (2, len(CLASSES))
        except Exception:  # whatever a network raises when given images too small for it
            fits = False
        if not fits:
            raise ModelError(f"torchvision:{name} cannot be adapted to images of 28 x 28 pixels")


def names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def _with_classes(network: nn.Module, classes: int) -> nn.Module:
    """Replace the last layer, which scores classes."""
    name, last = [
        (name, layer)
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ][-1]
    if isinstance(last, nn.Linear):
        replacement: nn.Module = nn.Linear(last.in_features, classes)
    else:
        replacement = nn.Conv2d(last.in_channels, classes, last.kernel_size)  # type: ignore[arg-type]
    network.set_submodule(name, replacement)
    return network


def _load(network: nn.Module, name: str, pretrained: str) -> None:
    try:
        if pretrained == "default":
            weights: Any = torchvision.models.get_model_weights(name).DEFAULT
            state = weights.get_state_dict(check_hash=True)
        else:
            state = torch.load(pretrained, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except URLError as error:
        raise ModelError(
            f"the weights of torchvision:{name} cannot be downloaded ({error.reason}): give"
            " pretrained the path of a file that holds them"
        ) from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{pretrained} is not a readable file of weights") from error
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the weights in {pretrained} are not those of torchvision:{name}"
        ) from error
