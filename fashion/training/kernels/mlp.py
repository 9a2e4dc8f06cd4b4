"""Training of a stack of linear layers, its backward pass written out.

The lab's linear models are so small that autograd's bookkeeping takes longer than their arithmetic.
`make_pass` calls the operations that autograd and torch.optim.SGD would call, with the same
operands, so the weights are the same, bit for bit. `make_native_pass` does without calls into
PyTorch, whose number is what is left of its time; the weights are the same within rounding.
"""

import ctypes
import functools
from collections.abc import Callable, Iterable
from typing import TypeGuard

import torch
from torch import Tensor, nn

from fashion.training.kernels.compile import library, takes

# PyTorch's products catch up as layers widen: benchmarks/README.md has the ratios.
MAX_WIDTH = 64

_log_softmax_backward = torch.ops.aten._log_softmax_backward_data.default
_nll_loss_backward = torch.ops.aten.nll_loss_backward.default
_threshold_backward = torch.ops.aten.threshold_backward.default
_MEAN, _NO_CLASS_IGNORED = 1, -100  # cross_entropy's defaults, as ATen's functions take them


def supports(model: nn.Module) -> TypeGuard[nn.Sequential]:
    """Tell whether the model is Flatten, then a Linear, then nothing but Linears and ReLUs."""
    return (
        isinstance(model, nn.Sequential)
        and isinstance(model[0], nn.Flatten)
        and isinstance(model[1], nn.Linear)
        and all(isinstance(layer, nn.Linear | nn.ReLU) for layer in model[1:])
    )


def supports_native(model: nn.Module) -> TypeGuard[nn.Sequential]:
    """Tell whether `make_native_pass` can train this model where it is."""
    return supports(model) and takes(model) and all(len(p) <= MAX_WIDTH for p in model.parameters())


def make_pass(
    model: nn.Sequential, lr: float
) -> Callable[[Iterable[tuple[Tensor, Tensor]]], Tensor]:
    """Return the function that takes a step of SGD on the mean cross-entropy of each batch.

    It takes batches of float32 images (B, 1, 28, 28) and int64 targets (B,), changes the model's
    parameters, and returns the logits (N, 10) of all batches, each from just before its step.

    Args:
        model: one that `supports` accepts.
        lr: the learning rate.
    """
    # Of a linear layer its weight, the same transposed, and its bias; of a ReLU None.
    layers = [
        (layer.weight.detach(), layer.weight.detach().t(), layer.bias.detach())
        if isinstance(layer, nn.Linear)
        else None
        for layer in model[1:]
    ]
    one = next(model.parameters()).new_ones(())

    @functools.cache
    def count(batch_size: int) -> Tensor:
        return one * batch_size

    def step(images: Tensor, targets: Tensor) -> Tensor:
        x = images.flatten(1)
        activations = [x]
        for layer in layers:
            x = x.relu() if layer is None else torch.addmm(layer[2], x, layer[1])
            activations.append(x)
        logits = activations[-1]
        log_probs = logits.log_softmax(1)
        gradient = _nll_loss_backward(
            one, log_probs, targets, None, _MEAN, _NO_CLASS_IGNORED, count(len(targets))
        )
        gradient = _log_softmax_backward(gradient, log_probs, 1, log_probs.dtype)
        for number in range(len(layers) - 1, -1, -1):
            layer = layers[number]
            if layer is None:
                gradient = _threshold_backward(gradient, activations[number + 1], 0)
                continue
            weight, _, bias = layer
            # The gradient of the images, below the first layer, is nobody's.
            below = gradient.mm(weight) if number else None
            weight.add_(gradient.t().mm(activations[number]), alpha=-lr)
            bias.add_(gradient.sum(0), alpha=-lr)
            gradient = below
        return logits

    @torch.inference_mode()  # once a pass: entering it at each step would take a tenth of the time
    def train_pass(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.cat([step(images, targets) for images, targets in batches])

    return train_pass


def make_native_pass(
    model: nn.Sequential, lr: float
) -> Callable[[Iterable[tuple[Tensor, Tensor]]], Tensor]:
    """Return the function that does what that of `make_pass` does, by mlp.c.

    Args:
        model: one that `supports_native` accepts.
        lr: the learning rate.

    Raises:
        KernelError: see `native.library`.
    """
    linear = [layer for layer in model[1:] if isinstance(layer, nn.Linear)]
    followers = [*model[2:], None]
    relu = [
        isinstance(follower, nn.ReLU)
        for layer, follower in zip(model[1:], followers, strict=True)
        if isinstance(layer, nn.Linear)
    ]
    widths = [linear[0].in_features, *(layer.out_features for layer in linear)]
    mlp_step = library().mlp_step

    def train_pass(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        # Addresses hold for one pass: between passes a parameter may get other memory.
        network = (
            len(linear),
            (ctypes.c_int * len(widths))(*widths),
            (ctypes.c_int * len(relu))(*relu),
            (ctypes.c_void_p * len(linear))(*(layer.weight.data_ptr() for layer in linear)),
            (ctypes.c_void_p * len(linear))(*(layer.bias.data_ptr() for layer in linear)),
        )

        def step(images: Tensor, targets: Tensor) -> Tensor:
            logits = images.new_empty(len(targets), widths[-1])
            images = images.contiguous()
            tensors = (tensor.data_ptr() for tensor in (images, targets, logits))
            mlp_step(*tensors, len(targets), *network, lr)
            return logits

        return torch.cat([step(images, targets) for images, targets in batches])

    return train_pass
