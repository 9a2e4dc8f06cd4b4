"""The state of a training: each part can be saved to and loaded from a state dict."""

import math
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fashion.data.dataset import Subset
from fashion.settings.experiment import Recipe
from fashion.training import distributed
from fashion.training.steps import Steps


class WeightAverage:
    """Exponential moving average of a model's weights, swapped into the model between epochs."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.averaged = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
            if decay
            else None
        )
        self.trained: dict[str, Any] | None = None

    def update(self) -> None:
        """Update the average after an optimisation step."""
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)

    def enter(self) -> None:
        """Load the averaged weights into the model, and save the trained ones."""
        if self.averaged is not None:
            self.trained = deepcopy(self.model.state_dict())
            self.model.load_state_dict(self.averaged.module.state_dict())

    def leave(self) -> None:
        """Load the trained weights back into the model."""
        if self.trained is not None:
            self.model.load_state_dict(self.trained)

    def trained_weights(self) -> dict[str, Any]:
        """Return the weights with which training continues."""
        return self.model.state_dict() if self.trained is None else self.trained

    def state_dict(self) -> dict[str, Any]:
        return {} if self.averaged is None else self.averaged.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self.averaged is not None:
            self.averaged.load_state_dict(state)


class EarlyStopping:
    """Stops after `patience` epochs without a lower validation loss; saves the best weights."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.epoch, self.loss = 0, math.inf
        self.weights: dict[str, Any] = {}

    def is_due(self, epochs: int) -> bool:
        """Return whether training stops after this number of epochs."""
        return bool(self.patience) and epochs - self.epoch >= self.patience

    def observe(self, epoch: int, loss: float, model: nn.Module) -> None:
        """Save the model's weights if `loss` is the lowest so far. NaN counts as infinity."""
        loss = math.inf if math.isnan(loss) else loss
        if self.patience and (epoch == 1 or loss < self.loss):
            self.epoch, self.loss, self.weights = epoch, loss, deepcopy(model.state_dict())

    def restore(self, model: nn.Module) -> None:
        """Load the best weights into the model, if any were saved."""
        if self.weights:
            model.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "loss": self.loss, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.loss, self.weights = (state[key] for key in ("epoch", "loss", "weights"))


class TrainingState:
    """A model in training, and everything that changes during training.

    Attributes:
        epoch: number of epochs that have begun.
        steps: runs the optimisation steps.
        stopping: decides when to stop.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, data: Subset) -> None:
        self.model, self.recipe, self.epoch = model, recipe, 0
        self.stopping = EarlyStopping(recipe.patience)
        self.steps = Steps(model, recipe, data, lambda: self.average.update())
        # After Steps, which may change the model's memory layout, because this copies the model.
        self.average = WeightAverage(model, recipe.ema_decay)
        self.shared_state = (*self.steps.shared_state, self.average, self.stopping)
        model.eval()

    def is_over(self) -> bool:
        """Return whether there are no more epochs."""
        return self.epoch >= self.recipe.epochs or self.stopping.is_due(self.epoch)

    def begin_epoch(self) -> None:
        """Prepare the model for optimisation steps."""
        self.epoch += 1
        self.average.leave()
        self.model.train()
        freeze_body(self.model, self.epoch <= self.recipe.freeze_epochs)

    def end_epoch(self) -> None:
        """Prepare the model for evaluation."""
        self.model.eval()
        self.average.enter()

    def finish(self) -> None:
        """Load the final weights into the model, in PyTorch's default layout and trainable."""
        self.stopping.restore(self.model)
        freeze_body(self.model, False)
        self.model.to(memory_format=torch.contiguous_format)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all processes after an epoch; all processes must call this."""
        return {
            "epoch": self.epoch,
            "model": self.average.trained_weights(),
            "shared": [part.state_dict() for part in self.shared_state],
            "ranks": distributed.gather([part.state_dict() for part in self.steps.rank_state]),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state returned by `state_dict`."""
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
    """Freeze or unfreeze all layers but the last."""
    *body, _ = (layer for layer in model.modules() if list(layer.parameters(recurse=False)))
    for layer in body:
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(not frozen)
