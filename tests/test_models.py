"""The models are the lab's."""

import pytest
import torch
from torch import nn

from fashion import models

# Parameters of each layer, in the order of the lab's modules.
SHAPES = {
    "baseline": [(10, 784), (10,), (10, 10), (10,)],
    "nonlinear": [(10, 784), (10,), (10, 10), (10,)],
    "cnn": [
        (10, 1, 3, 3), (10,), (10, 10, 3, 3), (10,),
        (10, 10, 3, 3), (10,), (10, 10, 3, 3), (10,),
        (10, 490), (10,),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_layers_have_the_labs_shapes(name: str) -> None:
    model = models.build(name, hidden_units=10, seed=42)
    assert [tuple(p.shape) for p in model.parameters()] == SHAPES[name]


@pytest.mark.parametrize(
    ("name", "count"), [("baseline", 7960), ("nonlinear", 7960), ("cnn", 7740)]
)
def test_parameter_count(name: str, count: int) -> None:
    model = models.build(name, hidden_units=10, seed=42)
    assert models.count_parameters(model) == count


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("hidden_units", [1, 10, 17])
def test_every_model_maps_images_to_logits(name: str, hidden_units: int) -> None:
    model = models.build(name, hidden_units, seed=0)
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)


def test_the_last_relu_of_nonlinear_clamps_the_logits() -> None:
    model = models.build("nonlinear", hidden_units=10, seed=42)
    assert model(torch.rand(100, 1, 28, 28)).min() == 0


def test_without_its_last_relu_the_same_weights_give_unclamped_logits() -> None:
    clamped, free = (models.build(name, 10, seed=42) for name in ("nonlinear", "nonlinear-fixed"))
    images = torch.rand(100, 1, 28, 28)
    assert free(images).min() < 0
    assert torch.equal(free(images).relu(), clamped(images))


def test_baseline_is_linear() -> None:
    model = models.build("baseline", hidden_units=10, seed=42)
    a, b = torch.rand(2, 5, 1, 28, 28)
    middle = (model(a) + model(b)) / 2
    torch.testing.assert_close(model((a + b) / 2), middle)


def test_the_seed_determines_the_weights_and_nothing_else() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same = (models.build("cnn", 10, seed=42) for _ in range(2))
    other = models.build("cnn", 10, seed=43)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(nn.utils.parameters_to_vector(one.parameters()),
                       nn.utils.parameters_to_vector(same.parameters()))  # fmt: skip
    assert not torch.equal(nn.utils.parameters_to_vector(one.parameters()),
                           nn.utils.parameters_to_vector(other.parameters()))  # fmt: skip


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError):
        models.build("resnet9000", 10, seed=42)
