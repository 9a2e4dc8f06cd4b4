"""TinyVGG's convolutions on a CPU, by conv3x3.c: faster than PyTorch, equal within rounding."""

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from fashion.models.lab import TinyVGG
from fashion.training.kernels.compile import library, takes

# Images per block: LANES in conv3x3.c.
LANES = 8
# With more channels PyTorch's convolutions are as fast: benchmarks/README.md has the ratios.
MAX_CHANNELS = 64
# Layers of a block of the lab's TinyVGG, without batch normalisation.
PLAIN = [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.MaxPool2d]


def supports(model: nn.Module) -> TypeGuard[TinyVGG]:
    """Return whether `forward` supports this model on its device."""
    return (
        isinstance(model, TinyVGG)
        and len(model) == 3
        and all(
            [type(layer) for layer in block.children()] == PLAIN for block in (model[0], model[1])
        )
        and takes(model)
        # The first parameter is a convolution's weight: (hidden units, 1, 3, 3).
        and len(next(model.parameters())) <= MAX_CHANNELS
    )


def forward(model: TinyVGG, images: Tensor) -> Tensor:
    """Compute what `model(images)` computes, differentiable with respect to the parameters.

    Args:
        model: a model for which `supports` is true.
        images: float32, shape (N, 1, 28, 28), on the CPU.

    Returns:
        Logits, float32, shape (N, 10).

    Raises:
        KernelError: as for `compile.library`.
    """
    first, second, classifier = model
    return classifier(_Features.apply(images, *first.parameters(), *second.parameters()))


class _Features(torch.autograd.Function):
    """Both blocks of a TinyVGG: images (N, 1, 28, 28) to features (N, channels * 7 * 7).

    One function instead of one per layer saves a tenth of the time, autograd's overhead.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, *parameters: Tensor) -> Tensor:
        x = _to_blocks(images)
        # Each layer has a weight and a bias; the second and the fourth include the pooling.
        layers = []
        for number in range(len(parameters) // 2):
            weight, bias = (p.contiguous() for p in parameters[2 * number : 2 * number + 2])
            pool = number % 2
            blocks, channels, size = x.shape[0], x.shape[1], x.shape[2] - 2
            y_size = size // 2 if pool else size
            y = torch.empty(blocks, len(weight), y_size + 2, y_size + 2, LANES)
            places = torch.empty(
                (blocks, len(weight), y_size, y_size, LANES) if pool else 0, dtype=torch.int32
            )
            sizes = (blocks, channels, len(weight), size, pool)
            library().conv_forward(*map(_address, (x, weight, bias, y, places)), *sizes)
            layers.append((x, weight, y, places, sizes))
            x = y
        ctx.save_for_backward(*(tensor for layer in layers for tensor in layer[:4]))
        ctx.sizes = [layer[4] for layer in layers]
        return _from_blocks(x, len(images))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        size = tensors[-2].shape[2] - 2
        dy: Tensor | None = _to_blocks(gradient.unflatten(1, (-1, size, size)))
        gradients: list[Tensor] = []
        for number in reversed(range(len(ctx.sizes))):
            x, weight, y, places = tensors[4 * number : 4 * number + 4]
            dw, db = torch.empty_like(weight), torch.empty(len(weight))
            # The input images need no gradient.
            dx = torch.empty_like(x) if number else None
            arguments = (dy, x, weight, y, places, dx, dw, db)
            library().conv_backward(*map(_address, arguments), *ctx.sizes[number])
            gradients = [dw, db, *gradients]
            dy = dx
        return None, *gradients


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _to_blocks(x: Tensor) -> Tensor:
    """Convert (N, channels, size, size) to conv3x3.c's layout; zeros fill the last block."""
    count, channels, size, _ = x.shape
    whole, rest = divmod(count, LANES)
    blocks = x.new_zeros(whole + (rest > 0), channels, size + 2, size + 2, LANES)
    inner = blocks[:, :, 1:-1, 1:-1]
    inner[:whole] = x[: whole * LANES].unflatten(0, (whole, LANES)).permute(0, 2, 3, 4, 1)
    if rest:
        inner[whole, ..., :rest] = x[whole * LANES :].permute(1, 2, 3, 0)
    return blocks


def _from_blocks(blocks: Tensor, count: int) -> Tensor:
    """Return the first `count` images of the blocks, each flattened to one row."""
    return blocks[:, :, 1:-1, 1:-1].permute(0, 4, 1, 2, 3).flatten(0, 1).flatten(1)[:count]
