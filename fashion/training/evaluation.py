"""Evaluate a model on a subset."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fashion.data.dataset import Subset, to_float

# Images that are read from a file at once, and computed at once on a GPU.
READ_AT_ONCE = 1000
# Of larger batches, activations would not fit in a CPU's cache.
AT_ONCE_ON_CPU = 100

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Evaluation:
    """A model's predictions on a subset.

    Attributes:
        loss: mean cross-entropy over the samples, in nats.
        accuracy: fraction of samples classified correctly.
        balanced_accuracy: mean of the classes' recall, over those with samples.
        macro_f1: mean of the classes' F1 score, over those with samples or predictions.
        logits: float32, shape (N, classes), on the CPU.
    """

    loss: float
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    logits: Tensor

    def metrics(self, split: str) -> dict[str, float]:
        """Return the metrics by the names under which they are logged: val_loss, ..."""
        names = ("loss", "accuracy", "balanced_accuracy", "macro_f1")
        return {f"{split}_{name}": getattr(self, name) for name in names}


def evaluate(
    model: nn.Module, data: Subset, forward: Forward | None = None, tta: bool = False
) -> Evaluation:
    """Evaluate `model`, in evaluation mode, on `data`; for the arguments see `predict`."""
    logits = torch.cat(
        [predict(model, batch, forward, tta) for batch in data.batches(READ_AT_ONCE)]
    )
    predicted = logits.argmax(dim=1)
    counts = torch.bincount(
        data.labels * logits.shape[1] + predicted, minlength=logits.shape[1] ** 2
    )
    confusion = counts.view(logits.shape[1], -1).double()
    right, true, answered = confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)
    return Evaluation(
        loss=F.cross_entropy(logits, data.labels).item(),
        accuracy=(predicted == data.labels).double().mean().item(),
        balanced_accuracy=(right / true)[true > 0].mean().item(),
        macro_f1=(2 * right / (true + answered))[true + answered > 0].mean().item(),
        logits=logits,
    )


@torch.inference_mode()
def predict(
    model: nn.Module, images: Tensor, forward: Forward | None = None, tta: bool = False
) -> Tensor:
    """Return the logits (float32, shape (N, classes), on the CPU) of uint8 images
    (N, channels, height, width).

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

    at_once = AT_ONCE_ON_CPU if device.type == "cpu" else READ_AT_ONCE
    return torch.cat([answer(batch).cpu() for batch in images.split(at_once)])
