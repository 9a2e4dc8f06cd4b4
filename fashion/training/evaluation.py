"""Evaluate a model on a subset."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fashion.data.dataset import Subset, to_float

# Activations of larger batches would not fit in a CPU's cache.
EVAL_BATCH_SIZE = 100

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """A model's predictions on a subset.

    Attributes:
        loss: mean cross-entropy over the samples, in nats.
        accuracy: fraction of samples classified correctly.
        logits: float32, shape (N, 10), on the CPU.
    """

    loss: float
    accuracy: float
    logits: Tensor


def evaluate(
    model: nn.Module, data: Subset, forward: Forward | None = None, tta: bool = False
) -> Evaluation:
    """Evaluate `model`, in evaluation mode, on `data`; for the arguments see `predict`."""
    logits = predict(model, data.images, forward, tta)
    return Evaluation(
        loss=F.cross_entropy(logits, data.labels).item(),
        accuracy=(logits.argmax(dim=1) == data.labels).double().mean().item(),
        logits=logits,
    )


@torch.inference_mode()
def predict(
    model: nn.Module, images: Tensor, forward: Forward | None = None, tta: bool = False
) -> Tensor:
    """Return the logits (float32, shape (N, 10), on the CPU) of uint8 images (N, 1, 28, 28).

    Args:
        model: in evaluation mode; the computation runs on its device.
        images: images to classify.
        forward: a faster equivalent of `model`, if any.
        tta: test-time augmentation: average the logits of each image and its mirror image.
    """
    device = next(model.parameters()).device
    compute = forward or model

    def answer(batch: Tensor) -> Tensor:
        x = to_float(batch.to(device))
        return (compute(x) + compute(x.flip(-1))) / 2 if tta else compute(x)

    return torch.cat([answer(batch).cpu() for batch in images.split(EVAL_BATCH_SIZE)])
