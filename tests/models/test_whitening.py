"""A fixed first layer whose outputs are uncorrelated over the training images' patches."""

from collections.abc import Callable
from unittest import mock

import mlflow
import pytest
import torch
from click.testing import Result
from torch import nn

from entrypoints import explore
from fashion.analysis import layers
from fashion.data.dataset import Dataset, to_float
from fashion.models import catalogue, whitening
from fashion.models.whitening import Whitening
from fashion.settings.experiment import Architecture, Experiment, Recipe
from fashion.settings.task import FASHION_MNIST
from fashion.tracking import models
from fashion.training import loop
from fashion.training.build import build
from fashion.training.optimizers import make_optimizers


def asked(**architecture: int | bool) -> Experiment:
    return Experiment.from_options(
        {"preset": "fast", "whiten": True, "epochs": 1, "val_size": 200, **architecture}
    )


def first(model: nn.Module) -> Whitening:
    (layer,) = (layer for layer in model.modules() if isinstance(layer, Whitening))
    return layer


@pytest.fixture(scope="module")
def model(small: Dataset) -> nn.Module:
    return build(asked(), small.train)[0]


def test_outputs_are_uncorrelated_and_of_equal_strength(model: nn.Module, small: Dataset) -> None:
    images = to_float(small.train.images)
    inside = first(model)(images)[..., 1:-1, 1:-1].movedim(1, -1).flatten(0, 2)
    patches = nn.functional.unfold(images, 3).transpose(1, 2).flatten(0, 1)
    outputs = inside[patches.std(dim=1) > 0][:, :8]
    moments = outputs.T @ outputs / len(outputs)
    off_diagonal = moments - moments.diag().diag()
    assert off_diagonal.abs().max() < 1e-3
    # The smallest variances are not scaled up to 1, which would amplify noise.
    assert 0.5 < moments.diag().min() <= moments.diag().max() < 1


def test_each_filter_comes_with_both_signs(model: nn.Module) -> None:
    positive, negative = first(model).weight.chunk(2)
    assert torch.equal(positive, -negative)
    assert positive.flatten(1).norm(dim=1).min() > 0


def test_filters_stay_as_they_are_while_all_else_is_trained(small: Dataset) -> None:
    experiment = asked()
    model, params = build(experiment, small.train)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(loop.train(model, small.train, experiment.recipe))
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"0.weight"}
    assert params["num_parameters"] == sum(p.numel() for p in model.parameters())


def test_muon_updates_the_first_trained_convolution_too(model: nn.Module) -> None:
    *_, muon = make_optimizers(model, Recipe(optimizer="muon"))
    assert len(muon.param_groups[0]["params"]) == 4


@pytest.mark.parametrize(("hidden_units", "channels"), [(1, 2), (5, 4), (16, 16), (32, 18)])
def test_there_are_at_most_two_filters_for_each_pixel_of_a_patch(
    small: Dataset, hidden_units: int, channels: int
) -> None:
    model, _ = build(asked(hidden_units=hidden_units), small.train)
    assert first(model).weight.shape == (channels, 1, 3, 3)
    assert model(torch.rand(2, *FASHION_MNIST.shape)).shape == (2, 10)


def test_images_without_any_detail_give_finite_filters() -> None:
    model = catalogue.build("compact", 0, Architecture(whiten=True))
    layer = first(model)
    layer.fit(torch.ones(2, 1, 28, 28))
    assert layer.weight.isfinite().all()


def test_where_images_are_large_a_few_from_all_over_the_data_suffice(
    small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whitening, "PATCHES", 3 * 28 * 28)
    model, _ = build(asked(), small.train)
    three = Whitening(1, 16)
    three.fit(to_float(small.train.images[[0, 666, 1333]]))
    assert torch.equal(first(model).weight, three.weight)


def test_explore_shows_the_filters(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    explored = mock.Mock(wraps=layers.explore)
    monkeypatch.setattr(layers, "explore", explored)
    result = invoke(explore.explore, ["--model", "compact", "--whiten", "true"])
    assert result.exit_code == 0, result.output
    assert first(explored.call_args.args[0]).weight.any()


def test_the_logged_model_has_the_filters(train_small: Callable[..., str]) -> None:
    run_id = train_small("compact", architecture={"whiten": True, "hidden_units": 8})
    loaded = models.load(models.model_uri(mlflow.get_run(run_id)))
    (filters,) = (value for name, value in loaded.state_dict().items() if name == "0.weight")
    assert filters.flatten(1).norm(dim=1).min() > 0
