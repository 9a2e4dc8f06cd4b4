"""Choose the kernels that compute a model: native or PyTorch's."""

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from fashion.settings.experiment import Recipe
from fashion.settings.task import FASHION_MNIST, Task
from fashion.training.kernels import conv3x3, mlp
from fashion.training.kernels.compile import KernelError, library
from fashion.training.kernels.threads import pytorch_single_threaded, usable_cores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kernels:
    """The kernels of a model, used in training and in evaluation.

    Attributes:
        name: "native" or "torch".
        forward: maps float32 images (N, channels, height, width) to logits (N, classes),
            differentiably.
        train_pass: for plain SGD without autograd: runs a step on each batch of images and int64
            targets (B,), and returns the logits (N, classes), each from just before its step.
        memory_format: memory layout of the model's parameters in training.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    train_pass: Callable[[Iterable[tuple[Tensor, Tensor]]], Tensor] | None = None
    memory_format: torch.memory_format = torch.contiguous_format

    def computing(self) -> AbstractContextManager[None]:
        """Return the context in which to train or evaluate with these kernels."""
        return pytorch_single_threaded() if self.name == "native" else nullcontext()


def choose(model: nn.Module, recipe: Recipe, nproc: int = 1, task: Task = FASHION_MNIST) -> Kernels:
    """Return the kernels for training `model`, on its device, by `recipe` in `nproc` processes.

    Raises:
        KernelError: `recipe` requires native kernels, but this machine cannot compile them, or
            there are several processes, which only PyTorch's kernels support.
    """
    if nproc > 1 and recipe.kernels == "native":
        raise KernelError("the native kernels support one process only: omit kernels or nproc")
    if nproc == 1 and mlp.supports(model) and recipe.is_plain_sgd:
        if mlp.supports_native(model) and _is_native(recipe.kernels):
            return Kernels("native", model, mlp.make_native_pass(model, recipe.lr))
        return Kernels("torch", model, mlp.make_pass(model, recipe.lr))
    if (
        nproc == 1
        and conv3x3.supports(model, task)
        and recipe.precision == "float32"
        and _is_native(recipe.kernels)
    ):
        threads = min(torch.get_num_threads(), usable_cores())
        train_pass = None
        if recipe.is_plain_sgd and conv3x3.supports_pass(model):
            train_pass = conv3x3.make_pass(model, recipe.lr, threads)
        return Kernels("native", partial(conv3x3.forward, model, threads=threads), train_pass)
    # PyTorch's convolutions are faster with channels_last; only the default layout matches the lab.
    fastest = torch.contiguous_format if recipe.kernels == "torch" else torch.channels_last
    return Kernels("torch", model, memory_format=fastest)


def _is_native(kernels: str) -> bool:
    if kernels == "torch":
        return False
    try:
        library()
    except KernelError as error:
        if kernels == "native":
            raise
        _warn_once(str(error))
        return False
    return True


@cache
def _warn_once(message: str) -> None:
    logger.warning(message)
