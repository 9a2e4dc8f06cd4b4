"""TinyVGG on a CPU, by tinyvgg.c: faster than PyTorch, equal within rounding.

`make_pass` trains by plain SGD, each step one call to C. For other recipes, `forward` leaves what
follows the convolutions to autograd.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from fashion.models.lab import TinyVGG
from fashion.settings.task import FASHION_MNIST, Task
from fashion.training.kernels.compile import library, takes

# Features a channel, as tinyvgg.c has them.
FEATURES = 7 * 7
# With more channels PyTorch's convolutions are as fast: benchmarks/README.md has the ratios.
MAX_CHANNELS = 64
# Layers of a block of the lab's TinyVGG, without batch normalisation.
PLAIN = [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.MaxPool2d]


def supports(model: nn.Module, task: Task = FASHION_MNIST) -> TypeGuard[TinyVGG]:
    """Return whether `forward` supports this model on its device, for images of this task."""
    return (
        task.shape == FASHION_MNIST.shape  # tinyvgg.c has its sizes
        and isinstance(model, TinyVGG)
        and len(model) == 3
        and all(
            [type(layer) for layer in block.children()] == PLAIN for block in (model[0], model[1])
        )
        and takes(model)
        # The first parameter is a convolution's weight: (hidden units, 1, 3, 3).
        and len(next(model.parameters())) <= MAX_CHANNELS
    )


def supports_pass(model: nn.Module) -> TypeGuard[TinyVGG]:
    """Return whether `make_pass` supports this model on its device."""
    return supports(model) and not any(isinstance(layer, nn.Dropout) for layer in model.modules())


def forward(model: TinyVGG, images: Tensor, threads: int = 1) -> Tensor:
    """Compute what `model(images)` computes, differentiable with respect to the parameters.

    Args:
        model: a model for which `supports` is true.
        images: float32, shape (N, 1, 28, 28), on the CPU.
        threads: most threads to use, for the backward pass too; the result does not depend on it.

    Returns:
        Logits, float32, shape (N, 10).

    Raises:
        KernelError: as for `compile.library`.
    """
    first, second, classifier = model
    return classifier(_Features.apply(threads, images, *first.parameters(), *second.parameters()))


def make_pass(
    model: TinyVGG, lr: float, threads: int = 1
) -> Callable[[Iterable[tuple[Tensor, Tensor]]], Tensor]:
    """Return a function that runs a step of SGD on the mean cross-entropy of each batch.

    It takes batches of float32 images (B, 1, 28, 28) and int64 targets (B,), updates the model's
    parameters, and returns the logits (N, 10) of all batches, each from just before its step.

    Args:
        model: a model for which `supports_pass` is true.
        lr: the learning rate.
        threads: most threads to use; the result does not depend on it.

    Raises:
        KernelError: as for `compile.library`.
    """
    tinyvgg_step = library().tinyvgg_step

    def train_pass(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        # Look addresses up in each pass: parameters may be moved between passes.
        parameters = list(model.parameters())
        classes, network = len(parameters[-1]), (len(parameters[0]), len(parameters[-1]))
        addresses = _addresses(parameters)

        def step(images: Tensor, targets: Tensor) -> Tensor:
            logits = images.new_empty(len(targets), classes)
            images = images.contiguous()
            tensors = (tensor.data_ptr() for tensor in (images, targets, logits))
            tinyvgg_step(*tensors, len(targets), *network, addresses, lr, threads)
            return logits

        return torch.cat([step(images, targets) for images, targets in batches])

    return train_pass


class _Features(torch.autograd.Function):
    """Both blocks of a TinyVGG: images (N, 1, 28, 28) to features (N, channels * 7 * 7)."""

    @staticmethod
    def forward(ctx: Any, threads: int, images: Tensor, *parameters: Tensor) -> Tensor:
        images = images.contiguous()
        parameters = tuple(p.contiguous() for p in parameters)
        sizes = len(images), len(parameters[0])
        features = torch.empty(len(images), sizes[1] * FEATURES)
        # What the backward pass needs of the activations.
        tape = None
        if any(ctx.needs_input_grad):
            tape = torch.empty(library().tinyvgg_tape(*sizes))
        tensors = (None if t is None else t.data_ptr() for t in (images, features, tape))
        library().tinyvgg_forward(*tensors, *sizes, _addresses(parameters), threads)
        ctx.save_for_backward(tape, *parameters)
        ctx.threads = threads
        return features

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tape, *parameters = ctx.saved_tensors
        gradient = gradient.contiguous()
        gradients = [torch.zeros_like(parameter) for parameter in parameters]
        library().tinyvgg_backward(
            gradient.data_ptr(),
            tape.data_ptr(),
            len(gradient),
            len(parameters[0]),
            _addresses(parameters),
            _addresses(gradients),
            ctx.threads,
        )
        return None, None, *gradients


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
