"""The models are the lab's."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from fashion.errors import SettingError
from fashion.models import catalogue
from fashion.settings.experiment import Architecture
from tests.conftest import HANG_SECONDS

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
    model = catalogue.build(name, seed=42)
    assert [tuple(p.shape) for p in model.parameters()] == SHAPES[name]


@pytest.mark.parametrize(
    ("name", "count"), [("baseline", 7960), ("nonlinear", 7960), ("cnn", 7740)]
)
def test_parameter_count(name: str, count: int) -> None:
    model = catalogue.build(name, seed=42)
    assert catalogue.count_parameters(model) == count


def test_gradients_do_not_depend_on_the_layout_whatever_the_cpu() -> None:
    """oneDNN chooses its kernels by the CPU; the ones without AVX-512 have had errors."""
    program = """
import torch
from fashion.models import catalogue
from fashion.settings.experiment import Architecture
def gradients(width, layout):
    model = catalogue.build("resnet", 0, Architecture(width, 1)).to(memory_format=layout)
    images = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    model(images).square().sum().backward()
    return [p.grad.contiguous() for p in model.parameters()]
for width in (2, 4, 7):
    contiguous = gradients(width, torch.contiguous_format)
    for a, b in zip(contiguous, gradients(width, torch.channels_last), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * a.abs().max().item())
"""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr.decode()


@pytest.mark.parametrize("name", catalogue.MODELS)
@pytest.mark.parametrize("hidden_units", [1, 10, 17])
def test_every_model_maps_images_to_logits(name: str, hidden_units: int) -> None:
    model = catalogue.build(name, seed=0, architecture=Architecture(hidden_units))
    assert model(torch.rand(3, 1, 28, 28)).shape == (3, 10)


def test_the_last_relu_of_nonlinear_clamps_the_logits() -> None:
    model = catalogue.build("nonlinear", seed=42)
    assert model(torch.rand(100, 1, 28, 28)).min() == 0


def test_without_its_last_relu_the_same_weights_give_unclamped_logits() -> None:
    clamped, free = (catalogue.build(name, seed=42) for name in ("nonlinear", "nonlinear-fixed"))
    images = torch.rand(100, 1, 28, 28)
    assert free(images).min() < 0
    assert torch.equal(free(images).relu(), clamped(images))


def test_baseline_is_linear() -> None:
    model = catalogue.build("baseline", seed=42)
    a, b = torch.rand(2, 5, 1, 28, 28)
    middle = (model(a) + model(b)) / 2
    torch.testing.assert_close(model((a + b) / 2), middle)


def test_the_seed_determines_the_weights_and_nothing_else() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same = (catalogue.build("cnn", seed=42) for _ in range(2))
    other = catalogue.build("cnn", seed=43)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(nn.utils.parameters_to_vector(one.parameters()),
                       nn.utils.parameters_to_vector(same.parameters()))  # fmt: skip
    assert not torch.equal(nn.utils.parameters_to_vector(one.parameters()),
                           nn.utils.parameters_to_vector(other.parameters()))  # fmt: skip


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SettingError, match="baseline, nonlinear"):
        catalogue.build("resnet9000", seed=42)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        (Architecture(blocks=1), (10, 1960)),
        (Architecture(blocks=3), (10, 90)),
        (Architecture(blocks=4, hidden_units=16), (10, 16)),
        (Architecture(dropout=0.5), (10, 490)),
        (Architecture(batch_norm=True), (10, 490)),
    ],
)
def test_the_cnn_has_the_layers_asked_for(
    architecture: Architecture, shape: tuple[int, ...]
) -> None:
    model = catalogue.build("cnn", seed=0, architecture=architecture)
    kinds = [type(module) for module in model.modules()]
    assert kinds.count(nn.Conv2d) == 2 * architecture.blocks
    assert kinds.count(nn.BatchNorm2d) == (
        2 * architecture.blocks if architecture.batch_norm else 0
    )
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == (
        [architecture.dropout] if architecture.dropout else []
    )
    assert list(model.parameters())[-2].shape == shape
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_the_residual_network_of_the_paper() -> None:
    # Table 6 of arXiv:1512.03385 counts 0.27 million parameters for 20 layers, on colour images.
    model = catalogue.build("resnet", seed=0, architecture=Architecture(16, blocks=3))
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(layers) + 1 == 20
    assert 265_000 < catalogue.count_parameters(model) < 280_000
    largest = catalogue.build("resnet", seed=0, architecture=Architecture(48, blocks=3))
    assert catalogue.count_parameters(largest) < 3_000_000


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("baseline", Architecture(blocks=3)),
        ("nonlinear", Architecture(dropout=0.1)),
        ("resnet", Architecture(batch_norm=True)),
    ],
)
def test_an_option_that_a_model_lacks_is_refused(name: str, architecture: Architecture) -> None:
    with pytest.raises(ValueError, match=f"{name} has no option"):
        catalogue.build(name, seed=0, architecture=architecture)
