"""The native convolutions compute what PyTorch's compute."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from fashion.data.dataset import Dataset, to_float
from fashion.models import catalogue
from fashion.models.lab import TinyVGG
from fashion.settings.experiment import Architecture, Recipe
from fashion.training import evaluation, loop
from fashion.training.kernels import conv3x3
from fashion.training.kernels.choose import choose

pytestmark = pytest.mark.usefixtures("native_kernels")


def loss_and_gradients(
    forward: Callable[[torch.Tensor], torch.Tensor],
    model: torch.nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
) -> tuple[float, list[torch.Tensor]]:
    loss = F.cross_entropy(forward(images), labels)
    return loss.item(), list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("hidden_units", [1, 3, 10, 13, 64])
@pytest.mark.parametrize("batch_size", [1, 8, 33])
def test_loss_and_gradients_are_pytorchs(
    small: Dataset, hidden_units: int, batch_size: int
) -> None:
    model = catalogue.build("cnn", seed=7, architecture=Architecture(hidden_units))
    assert conv3x3.supports(model)
    images, labels = to_float(small.train.images[:batch_size]), small.train.labels[:batch_size]
    loss, gradients = loss_and_gradients(lambda x: conv3x3.forward(model, x), model, images, labels)
    # What is exact to float32's precision is told from what is merely close by float64.
    exact_model = catalogue.build("cnn", seed=7, architecture=Architecture(hidden_units)).double()
    exact_loss, exact = loss_and_gradients(exact_model, exact_model, images.double(), labels)
    assert loss == pytest.approx(exact_loss, rel=1e-6)
    for ours, expected in zip(gradients, exact, strict=True):
        assert (ours - expected).norm() <= 1e-3 * expected.norm()


def test_a_trained_network_has_the_same_gradients_too(small: Dataset) -> None:
    # In training some units die and many inputs of a window tie at zero.
    model = catalogue.build("cnn", seed=42)
    list(loop.train(model, small.train, Recipe(epochs=2)))
    images, labels = to_float(small.test.images), small.test.labels
    _, ours = loss_and_gradients(lambda x: conv3x3.forward(model, x), model, images, labels)
    _, pytorchs = loss_and_gradients(model, model, images, labels)
    for our, expected in zip(ours, pytorchs, strict=True):
        # Which of two values in a window is the greater may depend on rounding: the gradients of
        # PyTorch's two memory layouts differ by as much.
        assert (our - expected).norm() <= 1e-3 * expected.norm()


def test_equal_values_in_a_window_share_no_gradient() -> None:
    # Blank images: all four values of every window are equal, and one of them takes the gradient.
    model = catalogue.build("cnn", seed=42)
    images, labels = torch.ones(3, 1, 28, 28), torch.tensor([0, 1, 2])
    _, ours = loss_and_gradients(lambda x: conv3x3.forward(model, x), model, images, labels)
    _, pytorchs = loss_and_gradients(model, model, images, labels)
    for our, expected in zip(ours, pytorchs, strict=True):
        assert torch.allclose(our, expected, rtol=1e-3, atol=1e-6)


def test_dropout_is_the_classifiers(small: Dataset) -> None:
    model = catalogue.build("cnn", 42, Architecture(dropout=0.5))
    assert conv3x3.supports(model)
    images = to_float(small.train.images[:16])
    torch.manual_seed(1)
    ours = conv3x3.forward(model, images)
    torch.manual_seed(1)
    torch.testing.assert_close(ours, model(images))
    assert not torch.equal(ours, conv3x3.forward(model, images))


def test_the_number_of_threads_changes_nothing(small: Dataset) -> None:
    model = catalogue.build("cnn", seed=42)
    images = to_float(small.train.images[:100])

    def gradients(threads: int) -> list[torch.Tensor]:
        x = conv3x3.forward(model, images, threads)
        gradients = torch.autograd.grad((x * x).sum(), list(model.block_1.parameters()))
        return [x.detach(), *gradients]

    for one, two in zip(gradients(1), gradients(2), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("hidden_units", [3, 10, 13])
@pytest.mark.parametrize("batch_size", [1, 8, 33])
def test_a_step_is_autograds(small: Dataset, hidden_units: int, batch_size: int) -> None:
    model, reference = (catalogue.build("cnn", 7, Architecture(hidden_units)) for _ in range(2))
    images, labels = to_float(small.train.images[:batch_size]), small.train.labels[:batch_size]
    logits = conv3x3.make_pass(model, lr=0.5)([(images, labels)])
    torch.testing.assert_close(logits, reference(images), rtol=1e-4, atol=1e-6)
    _, gradients = loss_and_gradients(reference, reference, images, labels)
    for ours, before, gradient in zip(
        model.parameters(), reference.parameters(), gradients, strict=True
    ):
        assert ((before - ours) / 0.5 - gradient).norm() <= 1e-3 * gradient.norm() + 1e-6


def weights_after_a_pass(
    small: Dataset, threads: int, model: TinyVGG | None = None
) -> list[torch.Tensor]:
    model = model or catalogue.build("cnn", seed=42)
    images, labels = to_float(small.train.images[:1000]), small.train.labels[:1000]
    train_pass = conv3x3.make_pass(model, lr=0.1, threads=threads)
    train_pass(zip(images.split(33), labels.split(33), strict=True))
    return [parameter.detach() for parameter in model.parameters()]


def test_more_threads_than_cores_compute_the_same_bits(small: Dataset) -> None:
    # Then some lose their core for a time, and others compute their pieces again.
    expected = weights_after_a_pass(small, threads=1)
    for threads in (2, 5, 5, 5):
        assert all(map(torch.equal, weights_after_a_pass(small, threads), expected))


def test_two_trainings_at_once_compute_the_same_bits(small: Dataset) -> None:
    expected = weights_after_a_pass(small, threads=1)
    models = [catalogue.build("cnn", seed=42) for _ in range(4)]
    with ThreadPoolExecutor(2) as pool:
        for weights in pool.map(lambda model: weights_after_a_pass(small, 2, model), models):
            assert all(map(torch.equal, weights, expected))


def test_a_forked_process_has_threads_of_its_own(small: Dataset) -> None:
    expected = weights_after_a_pass(small, threads=2)
    child = os.fork()
    if not child:
        same = False
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not outlive a fork
            weights = weights_after_a_pass(small, threads=2)
            same = all(map(torch.equal, weights, expected))
            tasks = Path("/proc/self/task")  # on Linux, this process's threads
            same &= not tasks.exists() or len(list(tasks.iterdir())) == 2
        finally:
            os._exit(0 if same else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def test_what_a_step_cannot_do_is_left_to_autograd() -> None:
    def has_pass(recipe: Recipe, dropout: float = 0.0) -> bool:
        model = catalogue.build("cnn", 42, Architecture(dropout=dropout))
        return choose(model, recipe).train_pass is not None

    assert has_pass(Recipe())
    assert not has_pass(Recipe(), dropout=0.5)
    assert not has_pass(Recipe(momentum=0.9))


def test_training_goes_the_same_way(small: Dataset) -> None:
    def losses(kernels: str) -> list[float]:
        model = catalogue.build("cnn", seed=42)
        recipe = Recipe(epochs=2, lr=0.05, kernels=kernels)
        return [epoch.loss for epoch in loop.train(model, small.train, recipe)]

    native, torchs = losses("native"), losses("torch")
    assert native == pytest.approx(torchs, rel=0.01)
    assert native != torchs  # else the same code ran twice


def test_evaluation_gives_the_same_logits(small: Dataset) -> None:
    model = catalogue.build("cnn", seed=42).eval()
    list(loop.train(model, small.train, Recipe(epochs=1)))
    torchs, ours = (
        evaluation.evaluate(model, small.test, choose(model, Recipe(kernels=name)).forward)
        for name in ("torch", "native")
    )
    torch.testing.assert_close(ours.logits, torchs.logits, rtol=1e-4, atol=1e-4)
    assert not torch.equal(ours.logits, torchs.logits)  # else the same code ran twice
    assert ours.accuracy == pytest.approx(torchs.accuracy, abs=0.01)


@pytest.mark.parametrize("parameter", [None, *range(8)])
def test_nan_in_an_image_or_a_weight_spreads_as_in_pytorch(parameter: int | None) -> None:
    torch.manual_seed(1)
    model = catalogue.build("cnn", seed=42)
    images, labels = torch.rand(10, 1, 28, 28), torch.arange(10)
    spoilt = images if parameter is None else list(model.parameters())[parameter].detach()
    spoilt[3].view(-1)[0] = math.nan
    expected = model(images).isnan()
    assert expected.any()
    assert torch.equal(conv3x3.forward(model, images).isnan(), expected)
    _, ours = loss_and_gradients(lambda x: conv3x3.forward(model, x), model, images, labels)
    _, pytorchs = loss_and_gradients(model, model, images, labels)
    assert torch.equal(conv3x3.make_pass(model, 0.1)([(images, labels)]).isnan(), expected)
    # PyTorch skips the padding, which we multiply: we may have NaN at a few more taps.
    for found in (ours, list(model.parameters())):
        assert all(
            our[theirs.isnan()].isnan().all() for our, theirs in zip(found, pytorchs, strict=True)
        )


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_a_diverging_training_is_seen_to_diverge(small: Dataset, kernels: str) -> None:
    model = catalogue.build("cnn", seed=42)
    recipe = Recipe(epochs=1, lr=30, kernels=kernels)
    (epoch,) = loop.train(model, small.train, recipe, small.test)
    assert math.isnan(epoch.metrics["train_loss"])
    assert math.isnan(epoch.metrics["val_loss"])
