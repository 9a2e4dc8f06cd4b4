"""A model's layers, feature maps and filters are shown as they are."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from torch import nn

from entrypoints.explore import explore as command
from fashion.analysis import layers
from fashion.analysis.layers import ExploreError
from fashion.data.dataset import Dataset, Subset, to_float
from fashion.models import catalogue, lab
from fashion.settings.experiment import Architecture, Experiment, Recipe
from fashion.settings.task import FASHION_MNIST, Task
from fashion.tracking import models, training
from fashion.tracking.models import RegistryError, rebuild

FILES = ["feature_maps.png", "filters.png", "layers.txt"]
TINY_VGG = [
    ("block_1.0", "Conv2d", (1, 28, 28), (10, 28, 28), 100, (3, 3)),
    ("block_1.1", "ReLU", (10, 28, 28), (10, 28, 28), 0, (3, 3)),
    ("block_1.2", "Conv2d", (10, 28, 28), (10, 28, 28), 910, (5, 5)),
    ("block_1.3", "ReLU", (10, 28, 28), (10, 28, 28), 0, (5, 5)),
    ("block_1.4", "MaxPool2d", (10, 28, 28), (10, 14, 14), 0, (6, 6)),
    ("block_2.0", "Conv2d", (10, 14, 14), (10, 14, 14), 910, (10, 10)),
    ("block_2.1", "ReLU", (10, 14, 14), (10, 14, 14), 0, (10, 10)),
    ("block_2.2", "Conv2d", (10, 14, 14), (10, 14, 14), 910, (14, 14)),
    ("block_2.3", "ReLU", (10, 14, 14), (10, 14, 14), 0, (14, 14)),
    ("block_2.4", "MaxPool2d", (10, 14, 14), (10, 7, 7), 0, (16, 16)),
    ("classifier.0", "Flatten", (10, 7, 7), (490,), 0, (16, 16)),
    ("classifier.1", "Linear", (490,), (10,), 4910, (28, 28)),
]
BASELINE = [
    ("0", "Flatten", (1, 28, 28), (784,), 0, (1, 1)),
    ("1", "Linear", (784,), (10,), 7850, (28, 28)),
    ("2", "Linear", (10,), (10,), 110, (28, 28)),
]


@pytest.fixture
def image(dataset: Dataset) -> torch.Tensor:
    return to_float(dataset.test.images[0])


def build(name: str, hidden_units: int = 10) -> nn.Module:
    return catalogue.build(name, seed=42, architecture=Architecture(hidden_units)).eval()


@pytest.mark.parametrize(("name", "expected"), [("cnn", TINY_VGG), ("baseline", BASELINE)])
def test_layers_have_the_labs_shapes_parameters_and_receptive_fields(
    name: str, expected: list[tuple]
) -> None:
    assert layers.layers(build(name)) == [layers.Layer(*row) for row in expected]


# Strides, dilations and kernels that differ by direction, and a second pooling layer.
ODD = nn.Sequential(
    nn.Conv2d(1, 2, (3, 5), stride=(2, 1), padding=2, dilation=(1, 2)),
    nn.ReLU(),
    nn.AvgPool2d(3, stride=2),
    nn.Conv2d(2, 2, 3, dilation=(2, 1)),
)
VGG = catalogue.build("cnn", 0, Architecture(3))


@pytest.mark.parametrize("chain", [ODD, nn.Sequential(*VGG.block_1, *VGG.block_2)])
def test_receptive_fields_are_where_the_gradient_is_not_zero(chain: nn.Sequential) -> None:
    # With weights above zero nothing cancels out. A maximum has a gradient for one value alone,
    # a different one in each of many random images.
    for parameter in chain.parameters():
        nn.init.constant_(parameter, 0.1)
    images = torch.rand(300, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    images.requires_grad_()
    seen, values = [], images
    for layer in chain:
        values = layer(values)
        middle = values[..., values.shape[2] // 2, values.shape[3] // 2]
        (gradient,) = torch.autograd.grad(middle.sum(), images, retain_graph=True)
        touched = gradient.ne(0).any(dim=0)[0]
        rows, columns = touched.any(dim=1).nonzero(), touched.any(dim=0).nonzero()
        seen.append((int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1))
    assert layers.receptive_fields(chain) == seen


def test_a_receptive_field_is_no_larger_than_the_image() -> None:
    wide = nn.Conv2d(1, 1, (41, 3), padding=(20, 1))
    assert layers.receptive_fields([wide, nn.Conv2d(1, 1, 3)]) == [(28, 3), (28, 5)]


def test_the_table_fits_80_columns() -> None:
    widest = layers.Layer(
        "block_1.0", "MaxPool2d", (4096, 28, 28), (4096, 28, 28), 150_998_944, (28, 28)
    )
    title = f"models:/{'name' * 30}@champion"
    lines = layers.render([widest], title).splitlines()
    assert max(map(len, lines)) <= 80
    # In one line, nothing cut off.
    (row,) = [line for line in lines if line.startswith("block_1.0")]
    assert "150,998,944" in row
    assert row.endswith("28\N{MULTIPLICATION SIGN}28")


def test_feature_maps_are_the_outputs_of_the_layers(image: torch.Tensor) -> None:
    model = build("cnn")
    maps = layers.feature_maps(model, image)
    with torch.inference_mode():
        first = model.block_1[0](image[None])
        pooled = model.block_1(image[None])
        last = model.block_2(pooled)
    assert list(maps) == [f"block_{block}.{layer}" for block in (1, 2) for layer in (0, 2, 4)]
    assert torch.equal(maps["block_1.0"], first[0])
    assert torch.equal(maps["block_1.4"], pooled[0])
    assert torch.equal(maps["block_2.4"], last[0])


def test_a_relu_in_place_leaves_the_feature_maps_alone(image: torch.Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True))
    maps = layers.feature_maps(model, image)
    assert torch.equal(maps["0"], model[0](image))
    assert maps["0"].min() < 0


def test_feature_maps_leave_no_hook_behind(image: torch.Tensor) -> None:
    model = build("cnn")
    maps = layers.feature_maps(model, image)
    kept = {name: channels.clone() for name, channels in maps.items()}
    model(torch.rand(1, 1, 28, 28))
    assert all(torch.equal(maps[name], kept[name]) for name in kept)


def test_the_first_linear_layer_is_a_filter_as_large_as_the_image() -> None:
    model = build("nonlinear", hidden_units=7)
    (name, weights), *more = layers.filters(model).items()
    assert (name, weights.shape, more) == ("1", (7, 1, 28, 28), [])
    assert torch.equal(weights.flatten(1), model[1].weight)


def test_convolutions_are_preferred_to_a_linear_layer_of_as_many_inputs_as_pixels() -> None:
    # 16 channels of 7x7 are 784 values too.
    shapes = [weights.shape for weights in layers.filters(build("cnn", hidden_units=16)).values()]
    assert shapes == [(16, 1, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3)]


def test_a_model_without_filters_is_refused(image: torch.Tensor) -> None:
    model = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(49, 10))
    with pytest.raises(ExploreError):
        layers.explore(model, image, "pooled", "image")


def test_the_figure_shows_the_image_the_logits_and_every_channel(image: torch.Tensor) -> None:
    model = build("cnn")
    original, logits, *strips = layers.draw_feature_maps(model, image, "cnn", "a boot").axes
    np.testing.assert_array_equal(original.images[0].get_array(), image[0])
    assert "a boot" in original.get_title()
    with torch.inference_mode():
        expected = model(image[None])[0]
    assert [bar.get_width() for bar in logits.patches] == pytest.approx(expected.tolist())
    assert FASHION_MNIST.classes[expected.argmax()] in logits.get_title()
    assert [axes.get_title(loc="left") for axes in strips] == [
        "layer block_1.0, Conv2d: 10×28×28, one value sees 3×3 pixels",  # noqa: RUF001
        "layer block_1.2, Conv2d: 10×28×28, one value sees 5×5 pixels",  # noqa: RUF001
        "layer block_1.4, MaxPool2d: 10×14×14, one value sees 6×6 pixels",  # noqa: RUF001
        "layer block_2.0, Conv2d: 10×14×14, one value sees 10×10 pixels",  # noqa: RUF001
        "layer block_2.2, Conv2d: 10×14×14, one value sees 14×14 pixels",  # noqa: RUF001
        "layer block_2.4, MaxPool2d: 10×7×7, one value sees 16×16 pixels",  # noqa: RUF001
    ]
    for axes, channels in zip(strips, layers.feature_maps(model, image).values(), strict=True):
        drawn = axes.images[0]
        assert set(channels.unique().tolist()) == set(np.unique(drawn.get_array().compressed()))
        assert drawn.norm.vmax == -drawn.norm.vmin == pytest.approx(channels.abs().max().item())


@pytest.mark.parametrize("name", catalogue.MODELS)
def test_filters_are_drawn_on_a_scale_centred_on_zero(name: str) -> None:
    model = build(name)
    shown = layers.draw_filters(model, name).axes
    for axes, all_weights in zip(shown, layers.filters(model).values(), strict=True):
        weights = all_weights[: layers.MOST_FILTERS, : layers.MOST_FILTERS]
        drawn = axes.images[0]
        assert set(weights.unique().tolist()) == set(np.unique(drawn.get_array().compressed()))
        assert drawn.norm.vmax == -drawn.norm.vmin == pytest.approx(weights.abs().max().item())
        assert len(axes.child_axes) == 1, "a colour bar"


def test_a_layer_of_zeros_is_drawn_as_zero(image: torch.Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(1352, 10))
    nn.init.zeros_(model[0].weight)
    (axes,) = layers.draw_filters(model, "dead").axes
    assert axes.images[0].norm(0.0) == 0.5


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_dead_and_a_diverged_model_can_be_drawn(
    value: float, image: torch.Tensor, tmp_path: Path
) -> None:
    model = build("cnn", hidden_units=2)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    layers.write(layers.explore(model, image, "dead", "image"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


COLOURED = Task("many", "Many", tuple(f"$c{number}$" for number in range(30)), (3, 20, 32))


def test_an_image_in_colour_and_its_filters_are_drawn(tmp_path: Path) -> None:
    model = catalogue.build("cnn", 0, Architecture(3), COLOURED).eval()
    image = torch.rand(COLOURED.shape)
    found = layers.explore(model, image, "cnn", "a $ and a $", COLOURED)
    assert "3×20×32" in found.table  # noqa: RUF001
    assert found.table.count("20×32") > 3  # noqa: RUF001
    original, logits, *_ = found.figures["feature_maps.png"].axes
    np.testing.assert_array_equal(original.images[0].get_array(), image.permute(1, 2, 0))
    first, second, *_ = found.figures["filters.png"].axes
    assert first.get_title(loc="left").endswith("rows: red, green, blue")
    assert second.get_title(loc="left").endswith("row: input channel")
    layers.write(found, tmp_path)

    # Of many classes the largest logits.
    with torch.inference_mode():
        largest = model(image[None])[0].sort(descending=True).values[: layers.MOST_CLASSES]
    assert [bar.get_width() for bar in logits.patches] == pytest.approx(largest.tolist())
    assert logits.get_title().startswith("the 20 largest of 30 logits: predicts ")


def test_a_linear_layer_on_an_image_in_colour_has_its_shape() -> None:
    model = catalogue.build("baseline", 0, Architecture(7), COLOURED)
    ((name, weights),) = layers.filters(model, COLOURED).items()
    assert (name, weights.shape) == ("1", (7, 3, 20, 32))
    assert layers.layers(model, COLOURED)[-1].receptive_field == (20, 32)


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


def artifacts() -> dict[str, list[str]]:
    """What each run of the store has logged."""
    client = MlflowClient()
    runs = mlflow.search_runs(output_format="list")
    return {
        run.info.run_id: [file.path for file in client.list_artifacts(run.info.run_id)]
        for run in runs
    }


@pytest.mark.parametrize("name", ["cnn", "nonlinear"])
def test_an_untrained_model_is_explored_written_and_logged(name: str, store: Path) -> None:
    result = invoke("--model", name, "--output-dir", "deep/output")
    assert result.exit_code == 0, result.output
    assert f"{name}, untrained" in result.stdout
    assert [path.name for path in sorted((store / "deep" / "output").iterdir())] == FILES
    ((run_id, logged),) = artifacts().items()
    assert logged == FILES
    assert run_id in result.stderr
    written = (store / "deep" / "output" / "layers.txt").read_text(encoding="utf-8")
    assert mlflow.artifacts.load_text(f"runs:/{run_id}/layers.txt") == written == result.stdout


def test_the_run_that_mlflow_run_opened_is_continued(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = MlflowClient().create_run(mlflow.get_experiment_by_name("test").experiment_id)
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    assert invoke("--model", "baseline").exit_code == 0
    assert artifacts() == {opened.info.run_id: FILES}
    assert not list(store.glob("*.png"))


@pytest.fixture
def train(store: Path, small: Dataset) -> Callable[[str, int], str]:
    """Return a function that trains a model for a moment and returns its URI."""

    def run(name: str, hidden_units: int) -> str:
        few = Subset("few", small.train.images[:100], small.train.labels[:100], "few")
        run_id = training.train(
            Experiment(
                name,
                architecture=Architecture(hidden_units),
                val_size=0,
                device="cpu",
                recipe=Recipe(epochs=1),
            ),
            Dataset(few, small.test, small.directory),
        )
        return models.model_uri(MlflowClient().get_run(run_id))

    return run


def test_a_registered_model_is_explored(train: Callable[[str, int], str]) -> None:
    uri = train("cnn", 3)
    mlflow.register_model(uri, "mine")
    MlflowClient().set_registered_model_alias("mine", "champion", "1")
    # The options of the untrained model do not apply.
    result = invoke(
        "--model-uri", "models:/mine@champion", "--model", "baseline", "--hidden-units", "5"
    )
    assert result.exit_code == 0, result.output
    assert "models:/mine@champion" in result.stdout
    assert "block_2.4" in result.stdout
    assert "3×14×14" in result.stdout  # noqa: RUF001
    assert FILES in artifacts().values()

    images = torch.rand(5, 1, 28, 28)
    expected = models.load(uri)(images)
    for name in (uri, "models:/mine@champion"):
        torch.testing.assert_close(rebuild(name)(images), expected)
    assert not torch.allclose(
        catalogue.build("cnn", 42, Architecture(3))(images), expected, atol=1e-3
    )


def clamped_baseline(hidden_units: int, task: Task) -> nn.Module:
    return nn.Sequential(*lab.baseline(hidden_units, task), nn.ReLU())


def test_a_model_whose_code_has_changed_is_refused(
    train: Callable[[str, int], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = train("baseline", 10)
    # The same weights by name and shape, but another function.
    monkeypatch.setitem(
        catalogue.MODELS,
        "baseline",
        f"{__name__}:clamped_baseline",
    )
    with pytest.raises(RegistryError, match="different logits"):
        rebuild(uri)
    monkeypatch.setitem(catalogue.MODELS, "baseline", catalogue.MODELS["cnn"])
    with pytest.raises(RegistryError, match="do not fit"):
        rebuild(uri)
    monkeypatch.delitem(catalogue.MODELS, "baseline")
    with pytest.raises(RegistryError, match="not logged by a training run"):
        rebuild(uri)


def test_a_foreign_model_is_refused_in_one_line(store: Path) -> None:
    example = np.zeros((2, 4), dtype=np.float32)
    log_model = partial(
        mlflow.pytorch.log_model,
        nn.Linear(4, 2),
        name="m",
        input_example=example,
        pip_requirements=[],
    )
    without_a_run = log_model().model_uri
    with mlflow.start_run():
        of_another_run = log_model().model_uri
    for uri in (without_a_run, of_another_run):
        refused = invoke("--model-uri", uri)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert refused.stderr.count("\n") == 1
        assert uri in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "exit_code", "named"),
    [
        (["--model-uri", "models:/nothing@champion"], 1, "models:/nothing@champion"),
        (["--model-uri", "models:/m-123"], 1, "models:/m-123"),
        (["--model-uri", "no/such/folder"], 1, "no/such/folder"),
        (["--index", "10000"], 2, "--index"),
        (["--index", "-1"], 2, "--index"),
        (["--hidden-units", "0"], 2, "--hidden-units"),
        (["--model", "resnet9000"], 2, "resnet9000"),
    ],
)
def test_bad_input_gives_one_line_and_no_file(
    arguments: list[str], exit_code: int, named: str, store: Path
) -> None:
    before = sorted(store.iterdir())
    result = invoke("--output-dir", "output", *arguments)
    assert result.exit_code == exit_code
    assert isinstance(result.exception, SystemExit), "no traceback"
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert named in error
    assert result.stderr.endswith(f"{error}\n")
    assert sorted(store.iterdir()) == before
    assert artifacts() == {}


def test_an_output_directory_that_cannot_be_made_is_named(store: Path) -> None:
    (store / "file").write_text("in the way")
    result = invoke("--output-dir", "file/output")
    assert result.exit_code == 1
    assert "file/output" in result.stderr
    assert result.stderr.count("\n") == 1
    assert artifacts() == {}


def test_help_needs_neither_torch_nor_mlflow() -> None:
    code = """
import sys
from entrypoints.explore import explore
explore(["--help"], standalone_mode=False)
assert not {"torch", "mlflow", "matplotlib", "pandas"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--model-uri" in done.stdout
