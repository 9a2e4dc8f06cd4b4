"""The optimisation steps of an epoch, and what changes with them beside the weights."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fashion.settings.experiment import Recipe
from fashion.training import distributed
from fashion.training.augmentation import Augmentation, make_mixup
from fashion.training.kernels.choose import choose
from fashion.training.optimizers import make_optimizers, make_schedule

if TYPE_CHECKING:  # importing it takes a second
    from torch.distributed.checkpoint.stateful import Stateful


class Steps:
    """Takes the optimisation steps of an epoch.

    Attributes:
        kernels: what computes the model.
        shared_state: what changes with the steps, alike in all processes.
        rank_state: what does so in each process by itself.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        steps_per_epoch: int,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare training of `model` in place.

        Args:
            model: on the device where training happens; its layout in memory may change.
            recipe: how to train.
            steps_per_epoch: the number of batches of an epoch, for the schedule.
            after_step: what to do after each step.

        Raises:
            KernelError: as for `kernels.choose`.
        """
        self.workers = distributed.world_size()
        self.kernels = choose(model, recipe, self.workers)
        model.to(memory_format=self.kernels.memory_format)
        self.model, self.recipe, self.after_step = model, recipe, after_step
        self.shared_state: tuple[Stateful, ...] = ()
        self.rank_state: tuple[Stateful, ...] = ()
        if self.kernels.train_pass is not None:
            return
        self.forward = _synchronized(model) if self.workers > 1 else self.kernels.forward
        self.optimizers = make_optimizers(model, recipe)
        self.schedules = [make_schedule(each, recipe, steps_per_epoch) for each in self.optimizers]
        self.augment = Augmentation(recipe.augment, (distributed.rank() << 48) + recipe.seed)
        self.mix = make_mixup(recipe.mixup)
        self.autocast = partial(
            torch.autocast,
            next(model.parameters()).device.type,
            torch.bfloat16,
            enabled=recipe.precision == "bfloat16",
        )
        self.shared_state = (*self.optimizers, *self.schedules)
        self.rank_state = (self.augment,)

    def run(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
        """Take a step on each batch; return the logits (N, 10), each from just before its step.

        Args:
            batches: float32 images (B, 1, 28, 28) and int64 targets (B,); among several processes
                this one's shares of the batches.
        """
        if self.kernels.train_pass is not None:
            return self.kernels.train_pass(batches)
        return torch.cat([self._step(images, targets) for images, targets in batches])

    def _step(self, images: Tensor, targets: Tensor) -> Tensor:
        mixed, shares = self.mix(self.augment(images), targets)
        with self.autocast():
            logits = self.forward(mixed)
        logits = logits.float()
        loss = F.cross_entropy(logits, shares, label_smoothing=self.recipe.label_smoothing)
        if self.workers > 1:
            # Gradients are averaged over processes, but what counts is the mean over samples.
            sizes = distributed.total(torch.tensor(float(len(images)), device=images.device))
            loss = loss * (self.workers * len(images) / sizes)
        loss.backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        self.model.zero_grad()
        self.after_step()
        return logits.detach()


def _synchronized(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the forward pass whose backward pass averages gradients over the processes."""
    wrapped: nn.Module = model
    trainable: list[bool] = []

    def forward(images: Tensor) -> Tensor:
        nonlocal wrapped, trainable
        now = [parameter.requires_grad for parameter in model.parameters()]
        if now != trainable:  # DDP must not wait for frozen parameters
            wrapped, trainable = distributed.data_parallel(model), now
        return wrapped(images)

    return forward
