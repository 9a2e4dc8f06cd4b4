"""What each process of `test_distributed.py` runs, and one by itself, for the same results."""

import sys
from typing import Any

import torch
from torch import Tensor, nn

from fashion.data.dataset import Dataset, to_float
from fashion.data.sources import load_dataset
from fashion.models import catalogue
from fashion.settings.experiment import Architecture, Recipe
from fashion.training import distributed, loop
from fashion.training.augmentation import Augmentation
from tests.conftest import head

# Model, architecture and settings.
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("baseline", {}, {"lr": 0.05}),
    ("cnn", {}, {"lr": 0.05, "momentum": 0.9, "freeze_epochs": 1}),
    ("cnn", {}, {"optimizer": "adamw", "lr": 0.001, "clip_norm": 1.0, "ema_decay": 0.9}),
    ("cnn", {}, {"optimizer": "muon", "lr": 0.005, "label_smoothing": 0.1, "patience": 1}),
]


def train(
    dataset: Dataset, name: str, architecture: dict[str, Any], settings: dict[str, Any]
) -> tuple[list[tuple[float, float]], dict[str, Tensor]]:
    """Return loss and accuracy of each epoch, and the final weights.

    332 images in batches of 33 and a last one of 2, of which the last of three processes has none.
    A second epoch shows what the last batch of the first has done.
    """
    model = catalogue.build(name, 7, Architecture(**architecture))
    recipe = Recipe(epochs=2, batch_size=33, kernels="torch", **settings)
    epochs = loop.train(model, head(dataset.train, 332), recipe, head(dataset.test, 100))
    return [(epoch.loss, epoch.accuracy) for epoch in epochs], model.state_dict()


def first_mask(dataset: Dataset) -> Tensor:
    """Return what dropout leaves of this process's share of the first batch: bool, (N, 10)."""
    masks = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.Dropout(0.5))
    model[2].register_forward_hook(lambda *passed: masks.append(passed[-1] == 0))
    list(loop.train(model, head(dataset.train, 63), Recipe(epochs=1, batch_size=63)))
    return masks[0]


def main(path: str) -> None:
    """Save results and weights of all cases, and what each process has drawn, in a file."""
    with distributed.joined():
        dataset = load_dataset()
        found = [train(dataset, *case) for case in CASES]
        flip = Augmentation(["flip"], distributed.rank_seed(42))
        flipped = flip(to_float(dataset.train.images[:100]))
        random = distributed.gather((first_mask(dataset), flipped))
        if distributed.rank() == 0:
            torch.save((found, random), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
