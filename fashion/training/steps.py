"""One epoch of optimisation steps."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from fashion.settings.experiment import Recipe
from fashion.training import distributed
from fashion.training.augmentation import Augmentation, make_mixup
from fashion.training.kernels import mlp
from fashion.training.kernels.choose import _forward, resolve_kernels
from fashion.training.optimizers import make_optimizers, make_schedule

if TYPE_CHECKING:  # importing it takes a second
    from torch.distributed.checkpoint.stateful import Stateful


@dataclass(frozen=True)
class Pass:
    """What makes one pass of training over batches.

    Attributes:
        run: takes batches of float32 images (B, 1, 28, 28) and int64 targets (B,), takes a step on
            each, and returns the logits (N, 10) of all, each from just before its step. Among
            several processes the batches are this one's shares of the batches.
        parts: what changes with the steps, beside the weights, alike in all processes.
        own: what does so in each process by itself.
    """

    run: Callable[[Iterable[tuple[Tensor, Tensor]]], Tensor]
    parts: "tuple[Stateful, ...]" = ()
    own: "tuple[Stateful, ...]" = ()


def make_pass(
    model: nn.Module, recipe: Recipe, steps_per_epoch: int, average: AveragedModel | None = None
) -> Pass:
    """Return what makes one pass of training over batches.

    Args:
        model: what is trained, in place.
        recipe: how.
        steps_per_epoch: number of batches of a pass, which the schedule counts in.
        average: of the weights, updated at each step.
    """
    workers = distributed.world_size()
    if mlp.supports(model) and recipe.is_plain_sgd and workers == 1:
        if resolve_kernels(recipe, model) == "native":
            return Pass(mlp.make_native_pass(model, recipe.lr))
        return Pass(mlp.make_pass(model, recipe.lr))
    forward = _forward(model, resolve_kernels(recipe, model))
    if workers > 1:
        forward = _synchronized(model)
    optimizers = make_optimizers(model, recipe)
    schedules = [make_schedule(optimizer, recipe, steps_per_epoch) for optimizer in optimizers]
    augment = Augmentation(recipe.augment, (distributed.rank() << 48) + recipe.seed)
    mix = make_mixup(recipe.mixup)
    autocast = partial(
        torch.autocast,
        next(model.parameters()).device.type,
        torch.bfloat16,
        enabled=recipe.precision == "bfloat16",
    )

    def step(images: Tensor, targets: Tensor) -> Tensor:
        mixed, shares = mix(augment(images), targets)
        with autocast():
            logits = forward(mixed)
        logits = logits.float()
        loss = F.cross_entropy(logits, shares, label_smoothing=recipe.label_smoothing)
        if workers > 1:
            # Gradients are averaged over processes, but what counts is the mean over samples.
            sizes = distributed.total(torch.tensor(float(len(images)), device=images.device))
            loss = loss * (workers * len(images) / sizes)
        loss.backward()
        if recipe.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        model.zero_grad()
        if average is not None:
            average.update_parameters(model)
        return logits.detach()

    def run(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        return torch.cat([step(images, targets) for images, targets in batches])

    averages = () if average is None else (average,)
    return Pass(run, (*optimizers, *schedules, *averages), (augment,))


def _synchronized(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the forward pass whose backward pass averages gradients over the processes."""
    wrapped: nn.Module = model
    learning: list[bool] = []

    def forward(images: Tensor) -> Tensor:
        nonlocal wrapped, learning
        now = [parameter.requires_grad for parameter in model.parameters()]
        if now != learning:  # what is frozen is none of the gradients that are waited for
            wrapped, learning = distributed.data_parallel(model), now
        return wrapped(images)

    return forward
