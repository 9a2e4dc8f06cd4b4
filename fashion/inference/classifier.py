"""Check that a model, which may be anybody's, fits a task and data."""

import torch
from torch import Tensor, nn

from fashion.errors import FashionError, printable
from fashion.settings.task import Task


class ForeignModelError(FashionError):
    """The model has other inputs or outputs."""


def check(model: nn.Module, name: str, task: Task) -> None:
    """Try a model on two black images.

    Args:
        model: the model, in evaluation mode, on the CPU.
        name: what to call it in the message.
        task: what it is to classify.

    Raises:
        ForeignModelError: it does not map float32 images of the task's shape to a logit for each
            class.
    """
    try:
        with torch.inference_mode():
            logits = model(torch.zeros(2, *task.shape))
    except Exception as error:  # whatever the model's code raises
        problem = next(iter(str(error).splitlines()), type(error).__name__)
        raise ForeignModelError(
            f"{name} does not take images of shape {task.shape} ({problem})"
        ) from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise ForeignModelError(f"{name} does not return logits, but a {type(logits).__name__}")
    expected = 2, len(task.classes)
    if logits.shape != expected:
        raise ForeignModelError(
            f"{name} returns shape {tuple(logits.shape)} for two images, not {expected}"
        )


def check_data(name: str, task: Task, data: Task) -> None:
    """Check that a model can be measured on data; both may have names of their own.

    Args:
        name: what to call the model in the message.
        task: what it classifies.
        data: the task of the data.

    Raises:
        ForeignModelError: the data has other classes, or images of another shape.
    """
    if (task.classes, task.shape) == (data.classes, data.shape):
        return
    ours, theirs = _described(task), _described(data)
    if ours == theirs:
        theirs = "those of other classes"
    resized = (data.classes, data.channels) == (task.classes, task.channels)
    remedy = f"image_size={task.shape[-1]}" if resized else "data=..."
    raise ForeignModelError(f"{name} classifies {ours}, not {theirs}: add {remedy}")


def _described(task: Task) -> str:
    return f"{printable(task.title)} ({task.size}, {len(task.classes)} classes)"
