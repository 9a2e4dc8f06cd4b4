"""Check that a model, which may be anybody's, classifies images of Fashion-MNIST."""

import torch
from torch import Tensor, nn

from fashion.errors import FashionError
from fashion.settings.task import CLASSES, IMAGE_SHAPE


class ForeignModelError(FashionError):
    """The model has other inputs or outputs."""


def check(model: nn.Module, name: str) -> None:
    """Try a model on two black images.

    Args:
        model: the model, in evaluation mode, on the CPU.
        name: what to call it in the message.

    Raises:
        ForeignModelError: it does not map float32 images of shape (2, 1, 28, 28) to logits of shape
            (2, 10).
    """
    try:
        with torch.inference_mode():
            logits = model(torch.zeros(2, *IMAGE_SHAPE))
    except Exception as error:  # whatever the model's code raises
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise ForeignModelError(
            f"{name} does not take images of shape {IMAGE_SHAPE} ({problem})"
        ) from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise ForeignModelError(f"{name} does not return logits, but a {type(logits).__name__}")
    if logits.shape != (2, len(CLASSES)):
        raise ForeignModelError(
            f"{name} returns shape {tuple(logits.shape)} for two images, not (2, {len(CLASSES)})"
        )
