"""Training of linear layers and ReLUs with a hand-written backward pass.

The lab's linear models are so small that autograd's overhead takes longer than their arithmetic.
`make_pass` calls the same operations as autograd and torch.optim.SGD, with the same operands, so
the weights are equal bit for bit. `make_native_pass` also avoids the overhead of PyTorch's calls;
the weights are equal within rounding.
"""

import ctypes
import functools
from collections.abc import Callable, Iterable
from typing import TypeGuard

import torch
from torch import Tensor, nn

from fashion.training.kernels.compile import library, takes

# With wider layers PyTorch's products are as fast: benchmarks/README.md has the ratios.
MAX_WIDTH = 64

_log_softmax_backward = torch.ops.aten._log_softmax_backward_data.default
_nll_loss_backward = torch.ops.aten.nll_loss_backward.default
_threshold_backward = torch.ops.aten.threshold_backward.default
_MEAN, _NO_CLASS_IGNORED = 1, -100  # cross_entropy's defaults, as ATen's functions take them


def supports(model: nn.Module) -> TypeGuard[nn.Sequential]:
    """Return whether the model is Flatten, then Linear, then only Linear and ReLU layers."""
    return (
        isinstance(model, nn.Sequential)
        and isinstance(model[0], nn.Flatten)
        and isinstance(model[1], nn.Linear)
        and all(isinstance(layer, nn.Linear | nn.ReLU) for layer in model[1:])
    )


def supports_native(model: nn.Module) -> TypeGuard[nn.Sequential]:
    """Return whether `make_native_pass` supports this model on its device."""
    return supports(model) and takes(model) and all(len(p) <= MAX_WIDTH for p in model.parameters())


def make_pass(
    model: nn.Sequential, lr: float
) -> Callable[[Iterable[tuple[Tensor, Tensor]]], Tensor]:
    """Return a function that runs a step of SGD on the mean cross-entropy of each batch.

    It takes batches of float32 images (B, 1, 28, 28) and int64 targets (B,), updates the model's
    parameters, and returns the logits (N, 10) of all batches, each from just before its step.

    Args:
        model: a model for which `supports` is true.
        lr: the learning rate.
    """
    # For a linear layer (weight, transposed weight, bias); for a ReLU None.
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
            # The input images need no gradient.
            below = gradient.mm(weight) if number else None
            weight.add_(gradient.t().mm(activations[number]), alpha=-lr)
            bias.add_(gradient.sum(0), alpha=-lr)
            gradient = below
        return logits

    @torch.inference_mode()  # once per pass: entering it at each step would take 10 % of the time
    def train_pass(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.cat([step(images, targets) for images, targets in batches])

    return train_pass


def make_native_pass(
    model: nn.Sequential, lr: float
) -> Callable[[Iterable[tuple[Tensor, Tensor]]], Tensor]:
    """Return a function like that of `make_pass`, computed by mlp.c.

    Args:
        model: a model for which `supports_native` is true.
        lr: the learning rate.

    Raises:
        KernelError: as for `compile.library`.
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
        # Look addresses up in each pass: parameters may be moved between passes.
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
