"""Training and evaluation do what they report."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fashion.data.dataset import Dataset, Subset, to_float
from fashion.errors import DeviceError
from fashion.models import catalogue
from fashion.settings.experiment import Architecture, Recipe
from fashion.training import build, evaluation, loop


def test_every_sample_is_visited_once_an_epoch_in_a_new_order() -> None:
    first, second = itertools.islice(loop.shuffled_orders(1_000, seed=42), 2)
    assert torch.equal(first.sort().values, torch.arange(1_000))
    assert torch.equal(second.sort().values, torch.arange(1_000))
    assert not torch.equal(first, second)


def test_training_learns_and_reports_each_epoch(small: Dataset) -> None:
    model = catalogue.build("baseline", seed=42)
    before = evaluation.evaluate(model, small.test)
    epochs = list(loop.train(model, small.train, Recipe(epochs=3)))
    after = evaluation.evaluate(model, small.test)
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert epochs[0].loss > epochs[1].loss > epochs[2].loss
    assert all(epoch.seconds > 0 for epoch in epochs)
    assert after.accuracy > 0.6 > 0.3 > before.accuracy
    assert after.loss < before.loss


def test_training_metrics_weigh_samples_not_batches(small: Dataset) -> None:
    # Batches of 1,500 and 500: a mean of batch means would count the small one three times.
    recipe = Recipe(epochs=1, batch_size=1_500, lr=0.1)
    model = catalogue.build("baseline", seed=42)
    (epoch,) = loop.train(model, small.train, recipe)

    order = next(loop.shuffled_orders(2_000, seed=42))
    replica = catalogue.build("baseline", seed=42)
    optimizer = torch.optim.SGD(replica.parameters(), lr=0.1)
    losses, hits = [], []
    for rows in order.split(1_500):
        logits = replica(to_float(small.train.images[rows]))
        each = F.cross_entropy(logits, small.train.labels[rows], reduction="none")
        losses += each.tolist()
        hits += (logits.argmax(dim=1) == small.train.labels[rows]).tolist()
        optimizer.zero_grad()
        each.mean().backward()
        optimizer.step()
    assert epoch.loss == pytest.approx(sum(losses) / 2_000, rel=1e-5)
    assert epoch.accuracy == sum(hits) / 2_000


def test_evaluation_weighs_samples_whatever_its_batches(small: Dataset) -> None:
    odd = Subset("odd", small.test.images[:7], small.test.labels[:7], "0")
    model = catalogue.build("cnn", seed=1).eval()
    measured = evaluation.evaluate(model, odd)
    logits = model(to_float(odd.images))
    assert measured.loss == pytest.approx(F.cross_entropy(logits, odd.labels).item(), rel=1e-6)
    assert measured.accuracy == (logits.argmax(dim=1) == odd.labels).sum().item() / 7
    assert measured.logits.shape == (7, 10)


def test_evaluation_changes_nothing(small: Dataset) -> None:
    model = catalogue.build("cnn", seed=42).eval()
    before = nn.utils.parameters_to_vector(model.parameters()).clone()
    state = torch.random.get_rng_state()
    evaluation.evaluate(model, small.test)
    assert torch.equal(nn.utils.parameters_to_vector(model.parameters()), before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_at_each_epoch_the_model_is_ready_for_evaluation(small: Dataset) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    for _ in loop.train(model, small.train, Recipe(epochs=2)):
        assert not model.training
        first, second = (evaluation.evaluate(model, small.test).logits for _ in range(2))
        assert torch.equal(first, second)


def test_early_stopping_ends_with_the_best_weights(small: Dataset) -> None:
    training, validation = small.split(500)
    model = catalogue.build("baseline", seed=42)
    losses = [
        epoch.validation.loss
        for epoch in loop.train(model, training, Recipe(epochs=100, lr=0.2, patience=2), validation)
    ]
    assert 3 <= len(losses) < 100
    assert min(losses) == losses[-3]
    # Outside the loop PyTorch may use more threads, which sum in another order.
    assert evaluation.evaluate(model, validation).loss == pytest.approx(min(losses), rel=1e-6)


def test_the_same_recipe_gives_the_same_weights(small: Dataset) -> None:
    def weights(seed: int) -> torch.Tensor:
        model = catalogue.build("cnn", seed=seed)
        list(loop.train(model, small.train, Recipe(epochs=1, seed=seed)))
        return nn.utils.parameters_to_vector(model.parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_dropout_follows_from_the_seed(small: Dataset) -> None:
    def weights(seed: int) -> torch.Tensor:
        model = catalogue.build("cnn", 42, Architecture(dropout=0.5))
        list(loop.train(model, small.train, Recipe(epochs=1, seed=seed)))
        return nn.utils.parameters_to_vector(model.parameters())

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = weights(1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, weights(1))


def test_auto_takes_a_device_that_is_there() -> None:
    device = build.resolve_device("auto")
    assert torch.ones(1, device=device).item() == 1
    assert build.resolve_device("cpu") == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DeviceError, match="cuda"):
        build.resolve_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_agrees_with_the_cpu(small: Dataset) -> None:
    on_cpu, on_gpu = (catalogue.build("cnn", seed=42) for _ in range(2))
    (cpu,) = loop.train(on_cpu, small.train, Recipe(epochs=1))
    (gpu,) = loop.train(on_gpu.cuda(), small.train, Recipe(epochs=1))
    assert gpu.loss == pytest.approx(cpu.loss, rel=0.02)
