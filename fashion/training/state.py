"""What training can continue from: each part saves and loads itself."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fashion.settings.experiment import Recipe
from fashion.training import distributed
from fashion.training.steps import Steps


class WeightAverage:
    """The exponential moving average of a model's weights, which between epochs is the model."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.averaged = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
            if decay
            else None
        )
        self.trained: dict[str, Any] | None = None

    def update(self) -> None:
        """Take an optimisation step into account."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def enter(self) -> None:
        """Give the model the averaged weights, and remember those it is trained with."""
        if self.averaged is not None:
            self.trained = deepcopy(self.model.state_dict())
            self.model.load_state_dict(self.averaged.module.state_dict())

    def leave(self) -> None:
        """Give the model back the weights it is trained with."""
        if self.trained is not None:
            self.model.load_state_dict(self.trained)

    def trained_weights(self) -> dict[str, Any]:
        """Return the weights that training continues with."""
        return self.model.state_dict() if self.trained is None else self.trained

    def state_dict(self) -> dict[str, Any]:
        return {} if self.averaged is None else self.averaged.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.averaged is not None:
            self.averaged.load_state_dict(state)


class EarlyStopping:
    """Stops after `patience` epochs without a lower validation loss; keeps the best weights."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.epoch, self.loss = 0, math.inf
        self.weights: dict[str, Any] = {}

    def is_due(self, epochs: int) -> bool:
        """Tell whether training ends after so many epochs."""
        return bool(self.patience) and epochs - self.epoch >= self.patience

    def observe(self, epoch: int, loss: float, model: nn.Module) -> None:
        """Keep the model's weights if `loss` is the lowest yet. NaN counts as the highest."""
        loss = math.inf if math.isnan(loss) else loss
        if self.patience and (epoch == 1 or loss < self.loss):
            self.epoch, self.loss, self.weights = epoch, loss, deepcopy(model.state_dict())

    def restore(self, model: nn.Module) -> None:
        """Give the model the best weights, where any were kept."""
        if self.weights:
            model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.loss, self.weights = (state[key] for key in ("epoch", "loss", "weights"))


class TrainingState:
    """A model in training, and everything that changes while it is trained.

    Attributes:
        epoch: how many epochs have begun.
        steps: takes the optimisation steps.
        stopping: decides when to end.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, steps_per_epoch: int) -> None:
        self.model, self.recipe, self.epoch = model, recipe, 0
        self.stopping = EarlyStopping(recipe.patience)
        self.steps = Steps(model, recipe, steps_per_epoch, lambda: self.average.update())
        # A copy of the model in the layout that it is trained in.
        self.average = WeightAverage(model, recipe.ema_decay)
        self.shared_state = (*self.steps.shared_state, self.average, self.stopping)
        model.eval()

    def is_over(self) -> bool:
        """Tell whether there is no further epoch."""
        return self.epoch >= self.recipe.epochs or self.stopping.is_due(self.epoch)

    def begin_epoch(self) -> None:
        """Make the model ready for optimisation steps."""
        self.epoch += 1
        self.average.leave()
        self.model.train()
        freeze_body(self.model, self.epoch <= self.recipe.freeze_epochs)

    def end_epoch(self) -> None:
        """Make the model ready for evaluation."""
        self.model.eval()
        self.average.enter()

    def finish(self) -> None:
        """Give the model its final weights, in PyTorch's default layout and trainable."""
        self.stopping.restore(self.model)
        freeze_body(self.model, False)
        self.model.to(memory_format=torch.contiguous_format)

    def state_dict(self) -> dict[str, Any]:
        """Return the state after an epoch, of all processes; every process calls this."""
        return {
            "epoch": self.epoch,
            "model": self.average.trained_weights(),
            "shared": [part.state_dict() for part in self.shared_state],
            "ranks": distributed.gather([part.state_dict() for part in self.steps.rank_state]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from such a state."""
        self.epoch = state["epoch"]
        self.model.load_state_dict(state["model"])
        for part, saved in zip(self.shared_state, state["shared"], strict=True):
            part.load_state_dict(saved)
        for part, saved in zip(
            self.steps.rank_state, state["ranks"][distributed.rank()], strict=True
        ):
            part.load_state_dict(saved)
        self.average.enter()


def freeze_body(model: nn.Module, frozen: bool) -> None:
    """Train the last layer alone, or all of them."""
    *body, _ = (layer for layer in model.modules() if list(layer.parameters(recurse=False)))
    for layer in body:
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(not frozen)
