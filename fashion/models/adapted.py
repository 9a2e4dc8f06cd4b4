"""torchvision's classifiers, adapted to the images and classes of a task."""

import pickle
from copy import deepcopy
from typing import Any
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from fashion.errors import ModelError
from fashion.settings.task import FASHION_MNIST, Task

# Normalisation that torchvision's pretrained weights expect: red, green, blue.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Smaller images than these would be a few pixels in the last layers.
SMALL = 112


class Adapted(nn.Module):
    """A torchvision classifier for the images of a task.

    A grey channel is used as red, green and blue. If the images are smaller than `SMALL` and the
    first convolution has stride 2, it gets stride 1, because the network was designed for images of
    224 pixels.

    Args:
        name: name of a classifier of torchvision.models.
        pretrained: a file of weights for the 1,000 ImageNet classes, as torchvision writes them;
            "default" for torchvision's best weights, from its cache or the network; "" for none.
        task: the images and classes.

    Raises:
        ModelError: the network cannot be adapted, or its weights cannot be loaded.
    """

    def __init__(self, name: str, pretrained: str = "", task: Task = FASHION_MNIST) -> None:
        super().__init__()
        # These take minutes to initialise unless told not to.
        options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        network = torchvision.models.get_model(name, weights=None, **options)
        if pretrained:
            _load(network, name, pretrained)
        self.mean: Tensor
        self.std: Tensor
        # Not torchvision's Normalize, which torch.export cannot trace.
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        self.network = _with_classes(network, len(task.classes))
        first = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
        if max(task.shape[1:]) < SMALL and first.stride == (2, 2):
            first.stride = (1, 1)
        self._check(name, task)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)

    def _check(self, name: str, task: Task) -> None:
        """Raise ModelError unless the forward pass returns logits."""
        # On a copy, because the pass updates batch normalisation's statistics.
        network = deepcopy(self).train()
        try:
            with torch.no_grad():
                logits = network(torch.zeros(2, *task.shape))
            fits = logits.shape == (2, len(task.classes))
        except Exception:  # networks raise many types for images that are too small
            fits = False
        if not fits:
            height, width = task.shape[1:]
            raise ModelError(
                f"torchvision:{name} cannot be adapted to images of {height} x {width} pixels"
            )


def names() -> list[str]:
    """Return the names of torchvision's classifiers."""
    return torchvision.models.list_models(module=torchvision.models)


def _with_classes(network: nn.Module, classes: int) -> nn.Module:
    """Replace the last layer by one with `classes` outputs."""
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
            f"the weights of torchvision:{name} cannot be downloaded ({error.reason}): set"
            " pretrained to a file of weights"
        ) from error
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(f"{pretrained} is not a readable file of weights") from error
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(
            f"the weights in {pretrained} are not those of torchvision:{name}"
        ) from error
