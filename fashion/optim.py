"""Optimisers and learning-rate schedules by name, from torch.optim."""

from collections.abc import Iterable

from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
)

from fashion.recipe import Recipe


def make_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> Optimizer:
    """Return the optimiser that `recipe` names; its learning rate is the schedule's greatest."""
    if recipe.optimizer == "sgd":
        return SGD(
            parameters,
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )
    constructor = {"adam": Adam, "adamw": AdamW}[recipe.optimizer]
    return constructor(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)


def make_schedule(optimizer: Optimizer, recipe: Recipe, steps_per_epoch: int) -> LRScheduler:
    """Return the schedule that `recipe` names, to be stepped after each step of training.

    After a linear warm-up of `recipe.warmup_epochs` the rate stays, or falls to zero along half a
    cosine. "one-cycle" (Smith and Topin, arXiv:1708.07120) warms up along a cosine itself.
    """
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if recipe.schedule == "one-cycle":
        return OneCycleLR(optimizer, recipe.lr, total_steps=total + 1, pct_start=warmup / total)
    rest: LRScheduler = ConstantLR(optimizer, factor=1, total_iters=0)
    if recipe.schedule == "cosine":
        rest = CosineAnnealingLR(optimizer, T_max=total - warmup)
    if not warmup:
        return rest
    start = LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return SequentialLR(optimizer, [start, rest], milestones=[warmup])
