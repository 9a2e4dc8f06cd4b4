"""Optimisers, schedules and what else a recipe asks for do what they are named after."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fashion.data.dataset import Dataset, to_float
from fashion.models import catalogue
from fashion.settings.experiment import OPTIMIZERS, SCHEDULES, Architecture, Recipe
from fashion.training import evaluation, loop, optimizers


def rates(recipe: Recipe, steps_per_epoch: int) -> list[float]:
    """Return the learning rate of each step of training."""
    (optimizer,) = optimizers.make_optimizers(nn.Linear(1, 1), recipe)
    schedule = optimizers.make_schedule(optimizer, recipe, steps_per_epoch)
    found = []
    for _ in range(recipe.epochs * steps_per_epoch):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def train(small: Dataset, **settings: object) -> tuple[nn.Module, list[loop.Epoch]]:
    model = catalogue.build("baseline", seed=42)
    return model, list(loop.train(model, small.train, Recipe(**settings)))


def mean_confidence(small: Dataset, **settings: object) -> torch.Tensor:
    """Return how sure a model so trained is of its answers, on average."""
    logits = evaluation.evaluate(train(small, **settings)[0], small.train).logits
    return logits.softmax(dim=1).amax(dim=1).mean()


def test_a_constant_rate_is_constant() -> None:
    assert rates(Recipe(epochs=2, lr=0.1), 5) == [0.1] * 10


def test_a_cosine_falls_to_zero() -> None:
    found = rates(Recipe(epochs=2, lr=0.1, schedule="cosine"), 50)
    assert found[0] == 0.1
    assert found[50] == pytest.approx(0.05)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.001


@pytest.mark.parametrize(("momentum", "range_"), [(0, (0, 0)), (0.5, (0.85, 0.95))])
def test_one_cycle_gives_a_momentum_to_none_that_has_none(
    momentum: float, range_: tuple[float, float]
) -> None:
    recipe = Recipe(epochs=2, schedule="one-cycle", warmup_epochs=1, momentum=momentum)
    (optimizer,) = optimizers.make_optimizers(nn.Linear(1, 1), recipe)
    schedule = optimizers.make_schedule(optimizer, recipe, 5)
    seen = []
    for _ in range(10):
        seen.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        schedule.step()
    assert (min(seen), max(seen)) == pytest.approx(range_, abs=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_warm_up_rises_to_the_greatest_rate(schedule: str) -> None:
    found = rates(Recipe(epochs=4, lr=0.1, schedule=schedule, warmup_epochs=0.5), 20)
    assert found[0] < 0.02
    assert found[:11] == sorted(found[:11])
    assert max(found) == pytest.approx(0.1, rel=1e-3)
    assert found.index(max(found)) in (9, 10)
    assert found[-1] == pytest.approx(0.1 if schedule == "constant" else 0, abs=0.001)


@pytest.mark.parametrize(
    "settings",
    [
        *({"optimizer": name, "lr": 0.1 if name == "sgd" else 0.003} for name in OPTIMIZERS),
        {"momentum": 0.9, "lr": 0.01},
        {"momentum": 0.9, "nesterov": True, "lr": 0.01},
        {"schedule": "one-cycle", "warmup_epochs": 0.5},
        {"label_smoothing": 0.1},
        {"clip_norm": 1.0},
        {"ema_decay": 0.9},
        {"mixup": 0.2},
        {"precision": "bfloat16"},
        {"freeze_epochs": 1},
    ],
)
def test_each_learns(small: Dataset, settings: dict[str, object]) -> None:
    model, epochs = train(small, **settings)
    assert epochs[-1].loss < epochs[0].loss
    assert evaluation.evaluate(model, small.test).accuracy > 0.6


def test_momentum_and_weight_decay_change_the_weights(small: Dataset) -> None:
    plain, *others = (
        nn.utils.parameters_to_vector(train(small, epochs=1, **settings)[0].parameters())
        for settings in (
            {},
            {"momentum": 0.5},
            {"momentum": 0.5, "nesterov": True},
            {"weight_decay": 0.01},
        )
    )
    for one, other in itertools.combinations([plain, *others], 2):
        assert not torch.equal(one, other)
    assert others[-1].norm() < plain.norm()


def test_the_lab_recipe_takes_the_same_steps_however_they_are_taken(small: Dataset) -> None:
    # A gradient is never this long, so that nothing is clipped, but by another path.
    by_hand, by_autograd = (
        train(small, epochs=1, clip_norm=norm, kernels="torch")[0] for norm in (0, 1e9)
    )
    for one, other in zip(by_hand.parameters(), by_autograd.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_muon_takes_orthogonal_steps_on_hidden_filters_alone(layout: torch.memory_format) -> None:
    model = catalogue.build("cnn", seed=42).to(memory_format=layout)
    before = [p.detach().clone() for p in model.parameters()]
    recipe = Recipe(optimizer="muon", lr=0.01)
    made = optimizers.make_optimizers(model, recipe)
    torch.manual_seed(0)
    F.cross_entropy(model(torch.rand(64, 1, 28, 28)), torch.randint(10, (64,))).backward()
    for optimizer in made:
        optimizer.step()
    names = [name for name, _ in model.named_parameters()]
    for name, old, p in zip(names, before, model.parameters(), strict=True):
        step = ((old - p.detach()) / recipe.lr).flatten(1) if p.ndim > 1 else None
        assert not torch.equal(old, p), name
        if name in ("block_1.2.weight", "block_2.0.weight", "block_2.2.weight"):
            # Muon's steps have singular values between about 0.5 and 1.5 times the scale which
            # gives them the length of AdamW's.
            singular = torch.linalg.svdvals(step) / (0.2 * 90**0.5)
            gradient = torch.linalg.svdvals(p.grad.flatten(1))
            alive = (gradient > 0.01 * gradient.max()).sum()
            assert alive > 5
            assert singular[:alive].min() > 0.3
            assert singular.max() < 1.7
            # They go down the gradient.
            assert (step * p.grad.flatten(1)).sum() > 0
        elif step is not None:
            # AdamW's first step is of one length in every direction.
            taken = step[p.grad.flatten(1).abs() > 1e-5].abs()
            torch.testing.assert_close(taken, torch.ones_like(taken), rtol=0.05, atol=0.05)


def test_muon_is_torchs_muon_but_for_rounding() -> None:
    torch.manual_seed(0)
    shapes = [(10, 40), (40, 10), (16, 16), (10, 40)]
    ours, torchs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    settings = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    one, other = optimizers.BatchedMuon(ours, **settings), torch.optim.Muon(torchs, **settings)
    for _ in range(5):
        for mine, theirs in zip(ours, torchs, strict=True):
            mine.grad = theirs.grad = torch.randn(mine.shape)
        one.step()
        other.step()
    for mine, theirs in zip(ours, torchs, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0.002)
        assert not torch.allclose(mine, torch.ones_like(mine), rtol=0, atol=0.01)


def test_frozen_epochs_train_the_last_layer_alone(small: Dataset) -> None:
    model = catalogue.build("cnn", seed=42)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    recipe = Recipe(epochs=2, freeze_epochs=1, kernels="torch")
    changed = [
        {name for name, p in model.named_parameters() if not torch.equal(p, start[name])}
        for _ in loop.train(model, small.train, recipe)
    ]
    assert changed == [{"classifier.1.weight", "classifier.1.bias"}, set(start)]
    assert all(p.requires_grad for p in model.parameters())


def test_mixup_trains_on_mixed_images_and_makes_a_model_less_sure(small: Dataset) -> None:
    sure, unsure = (mean_confidence(small, mixup=alpha) for alpha in (0, 1))
    assert unsure < sure - 0.02


def test_mixup_follows_from_the_seed(small: Dataset) -> None:
    one, again, other = (
        nn.utils.parameters_to_vector(train(small, epochs=1, mixup=1, seed=seed)[0].parameters())
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_bfloat16_computes_with_fewer_digits(small: Dataset) -> None:
    def first_loss(precision: str) -> float:
        model = catalogue.build("resnet", 42, Architecture(hidden_units=4, blocks=1))
        recipe = Recipe(epochs=1, batch_size=500, precision=precision, lr=0.01)
        return next(loop.train(model, small.test, recipe)).loss

    exact, rounded = first_loss("float32"), first_loss("bfloat16")
    assert exact != rounded
    assert rounded == pytest.approx(exact, rel=0.01)


def test_clipping_bounds_the_steps(small: Dataset) -> None:
    before = nn.utils.parameters_to_vector(catalogue.build("baseline", seed=42).parameters())
    model, _ = train(small, epochs=1, clip_norm=1e-4, lr=0.1)
    after = nn.utils.parameters_to_vector(model.parameters())
    assert 0 < (after - before).norm() <= math.ceil(2000 / 32) * 0.1 * 1e-4 * 1.01


def test_label_smoothing_makes_a_model_less_sure(small: Dataset) -> None:
    sure, unsure = (mean_confidence(small, label_smoothing=smoothing) for smoothing in (0, 0.3))
    assert unsure < sure - 0.05


def test_averaging_leaves_the_training_alone_and_gives_the_average(small: Dataset) -> None:
    recipe = Recipe(epochs=2, batch_size=500, ema_decay=0.5)
    model = catalogue.build("baseline", seed=42)
    seen = [
        nn.utils.parameters_to_vector(model.parameters()).detach().clone()
        for _ in loop.train(model, small.train, recipe)
    ]
    final = nn.utils.parameters_to_vector(model.parameters())
    assert torch.equal(final, seen[-1])

    replica = catalogue.build("baseline", seed=42)
    optimizer = torch.optim.SGD(replica.parameters(), lr=recipe.lr)
    average, expected = None, []
    for order in itertools.islice(loop.shuffled_orders(2_000, seed=42), 2):
        for rows in order.split(500):
            logits = replica(to_float(small.train.images[rows]))
            optimizer.zero_grad()
            F.cross_entropy(logits, small.train.labels[rows]).backward()
            optimizer.step()
            weights = nn.utils.parameters_to_vector(replica.parameters()).detach()
            average = weights.clone() if average is None else 0.5 * average + 0.5 * weights
        expected.append(average.clone())
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam", "momentum": 0.9},
        {"optimizer": "adamw", "nesterov": True},
        {"nesterov": True},
        {"epochs": 2, "warmup_epochs": 2},
        {"schedule": "one-cycle"},
    ],
)
def test_contradictions_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Recipe(**settings)
