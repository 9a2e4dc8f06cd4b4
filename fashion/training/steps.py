"""Run optimisation steps, and hold their state: optimisers, schedules and augmentation."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fashion.data.dataset import Subset
from fashion.settings.experiment import Recipe
from fashion.training import distributed
from fashion.training.augmentation import Augmentation, make_mixup
from fashion.training.graphs import Replayed
from fashion.training.kernels.choose import choose
from fashion.training.optimizers import make_optimizers, make_schedule

if TYPE_CHECKING:  # importing it takes a second
    from torch.distributed.checkpoint.stateful import Stateful


class Steps:
    """Runs the optimisation steps of an epoch.

    Attributes:
        kernels: the kernels that compute the model.
        shared_state: objects whose state is equal in all processes.
        rank_state: objects whose state differs between processes.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        data: Subset,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare training of `model` in place.

        Args:
            model: on the training device; its memory layout may change.
            recipe: how to train.
            data: the training images.
            after_step: called after each step.

        Raises:
            KernelError: as for `kernels.choose`.
        """
        self.workers = distributed.world_size()
        self.kernels = choose(model, recipe, self.workers, data.task)
        model.to(memory_format=self.kernels.memory_format)
        self.model, self.recipe, self.after_step = model, recipe, after_step
        self.shared_state: tuple[Stateful, ...] = ()
        self.rank_state: tuple[Stateful, ...] = ()
        if self.kernels.train_pass is not None:
            return
        self.forward = _synchronized(model) if self.workers > 1 else self.kernels.forward
        self.optimizers = make_optimizers(model, recipe)
        steps_per_epoch = math.ceil(len(data) / recipe.batch_size)
        self.schedules = [make_schedule(each, recipe, steps_per_epoch) for each in self.optimizers]
        device = next(model.parameters()).device
        self.augment = Augmentation(recipe.augment, distributed.rank_seed(recipe.seed), device)
        self.mix = make_mixup(recipe.mixup, len(data.task.classes), device)
        self.class_weights = _class_weights(data) if recipe.class_weights == "balanced" else None
        self.autocast = partial(
            torch.autocast,
            device.type,
            torch.bfloat16,
            enabled=recipe.precision == "bfloat16",
        )
        self.update: Callable[[Tensor, Tensor], Tensor] = self._update
        # Several processes wait for each other at each step, which a recording cannot.
        if device.type == "cuda" and self.workers == 1:
            generator = self.augment.draws.generator
            parameters = list(model.parameters())
            self.update = Replayed(self._update, parameters, self.optimizers, generator)
        self.shared_state = (*self.optimizers, *self.schedules)
        self.rank_state = (self.augment,)

    def run(self, batches: Iterable[tuple[Tensor, Tensor]], epoch: int) -> Tensor:
        """Run a step on each batch; return the logits (N, classes), each from just before its step.

        Args:
            batches: float32 images (B, channels, height, width) and int64 targets (B,); with
                several processes, this process's shares, which may be empty.
            epoch: number of the epoch, from 1.
        """
        with self.kernels.computing():
            if self.kernels.train_pass is not None:
                return self.kernels.train_pass(batches)
            self.augment.draws.epoch.fill_(epoch)
            return torch.cat([self._step(images, targets) for images, targets in batches])

    def _step(self, images: Tensor, targets: Tensor) -> Tensor:
        logits = self.update(images, targets)
        for schedule in self.schedules:
            schedule.step()
        self.after_step()
        return logits

    def _update(self, images: Tensor, targets: Tensor) -> Tensor:
        mixed, shares = self.mix(self.augment(images), targets)
        with self.autocast():
            logits = self.forward(mixed)
        logits = logits.float()
        loss = F.cross_entropy(
            logits,
            shares,
            weight=self.class_weights,
            label_smoothing=self.recipe.label_smoothing,
            # With weights, PyTorch's mean over class indices is divided by the batch's weights: an
            # image would count more in a batch of frequent classes.
            reduction="mean" if self.workers == 1 and self.class_weights is None else "sum",
        )
        if self.workers > 1:
            # DDP averages gradients over processes; rescale to the mean over the batch's rows.
            rows = distributed.total(torch.tensor(float(len(images)), device=images.device))
            loss = loss * (self.workers / rows)
        elif self.class_weights is not None:
            loss = loss / len(images)
        loss.backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad()
        return logits.detach()


def _class_weights(data: Subset) -> Tensor:
    """Return a weight for each class, float32 (classes,), whose mean over all images is 1.

    Classes without images have weight 0.
    """
    counts = torch.bincount(data.labels, minlength=len(data.task.classes))
    present = counts.clamp(min=1)
    return torch.where(counts > 0, len(data) / (present * (counts > 0).sum()), 0.0).float()


def _synchronized(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a forward pass whose backward pass averages gradients over the processes."""
    wrapped: nn.Module = model
    trainable: list[bool] = []

    def forward(images: Tensor) -> Tensor:
        nonlocal wrapped, trainable
        now = [parameter.requires_grad for parameter in model.parameters()]
        if now != trainable:  # DDP must not wait for frozen parameters
            wrapped, trainable = distributed.data_parallel(model), now
        if not len(images):
            # Each process must take part in DDP's reductions: use a blank image, which no logit and
            # so no gradient comes from.
            return wrapped(images.new_zeros(1, *images.shape[1:]))[:0]
        return wrapped(images)

    return forward
