"""On a CUDA GPU, steps that are replayed from a recording do what they do one by one."""

import pytest
import torch
from torch import nn

from fashion.data.dataset import Dataset
from fashion.models import catalogue
from fashion.settings.experiment import AUGMENTATIONS, Architecture, Recipe
from fashion.training import graphs, loop
from fashion.training.augmentation import Augmentation

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")

SMALL_RESNET = Architecture(hidden_units=8, blocks=1)


def train(small: Dataset, **settings: object) -> tuple[list[float], torch.Tensor]:
    """Return the epochs' losses and the weights of a model trained on the GPU."""
    model = catalogue.build("resnet", 42, SMALL_RESNET).cuda()
    recipe = Recipe(**{"epochs": 4, "batch_size": 300, "lr": 0.05, **settings})
    losses = [epoch.loss for epoch in loop.train(model, small.train, recipe)]
    return losses, nn.utils.parameters_to_vector(model.parameters()).cpu()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9, "nesterov": True, "clip_norm": 1.0},
        {"optimizer": "muon", "lr": 0.01, "schedule": "one-cycle", "warmup_epochs": 1},
        {"optimizer": "adamw", "lr": 0.003, "label_smoothing": 0.1, "ema_decay": 0.5},
        {"freeze_epochs": 2},
        {"class_weights": "balanced"},
        {"augment": ("alternate",)},
    ],
)
def test_replayed_steps_are_those_that_were_recorded(
    small: Dataset, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed, weights = train(small, **settings)
    monkeypatch.setattr(graphs, "WARM_UP", 10**9)
    expected, theirs = train(small, **settings)
    assert replayed == pytest.approx(expected, rel=0.01)
    assert (weights - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize(
    "settings",
    [
        {"augment": ("flip", "shift", "erase")},
        {"mixup": 0.5},
        {"precision": "bfloat16", "augment": ("flip",)},
    ],
)
def test_each_replay_draws_new_random_numbers(small: Dataset, settings: dict[str, object]) -> None:
    (one, _), (again, _), (other, _) = (
        train(small, seed=seed, epochs=8, **settings) for seed in (1, 1, 2)
    )
    assert one == pytest.approx(again, rel=0.02)
    assert one != pytest.approx(other, rel=1e-4)
    assert one[-1] < one[0]


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_replays_draw_what_calls_one_by_one_would(name: str) -> None:
    once, replayed = (Augmentation([name], seed=1, device="cuda") for _ in range(2))
    images = torch.rand(8, 1, 28, 28, device="cuda")
    replay = graphs.Replayed(replayed, [], [], replayed.draws.generator)
    for call in range(graphs.WARM_UP + 3):
        assert torch.equal(replay(images), once(images)), call
