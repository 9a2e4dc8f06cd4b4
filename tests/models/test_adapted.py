"""torchvision's classifiers take the dataset's images, and weights that they are given."""

from pathlib import Path
from urllib.error import URLError

import mlflow
import pytest
import torch
import torchvision
from click.testing import CliRunner

from entrypoints.train import train as train_command
from fashion.data.dataset import Dataset
from fashion.errors import ModelError
from fashion.models import catalogue
from fashion.settings.experiment import Architecture, Experiment, Recipe
from fashion.tracking import models, training
from fashion.training import evaluation, loop
from tests.conftest import head

# One whose classes are scored by a linear layer, and one by a convolution.
RESNET, SQUEEZENET = "torchvision:resnet18", "torchvision:squeezenet1_1"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights for the 1,000 classes of ImageNet, as torchvision writes them."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(3)
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.mark.parametrize("name", [RESNET, SQUEEZENET, "torchvision:mobilenet_v3_small"])
def test_images_give_logits_of_ten_classes(name: str, small: Dataset) -> None:
    model = catalogue.build(name, seed=42).eval()
    logits = evaluation.predict(model, small.test.images[:3])
    assert logits.shape == (3, 10)
    assert logits.isfinite().all()


def test_it_follows_from_the_seed() -> None:
    one, again, other = (catalogue.build(RESNET, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_it_learns(small: Dataset) -> None:
    model = catalogue.build(SQUEEZENET, seed=42)
    recipe = Recipe(epochs=2, optimizer="adamw", lr=0.001)
    epochs = list(loop.train(model, head(small.train, 1000), recipe))
    assert epochs[-1].accuracy > epochs[0].accuracy
    assert epochs[-1].accuracy > 0.3


def test_given_weights_are_those_of_all_layers_but_the_last(weights: Path) -> None:
    model = catalogue.build(RESNET, 42, Architecture(pretrained=str(weights)))
    given = torch.load(weights, weights_only=True)
    ours = model.network.state_dict()
    assert given.keys() == ours.keys()
    for name, tensor in given.items():
        if name.startswith("fc."):
            assert ours[name].shape[0] == 10
        else:
            assert torch.equal(ours[name], tensor)


def test_weights_of_another_network_are_refused(weights: Path) -> None:
    with pytest.raises(ModelError, match="not those of torchvision:squeezenet1_1"):
        catalogue.build(SQUEEZENET, 42, Architecture(pretrained=str(weights)))


@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04"])
def test_a_file_of_no_weights_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.pth"):
        catalogue.build(RESNET, 42, Architecture(pretrained=str(path)))


def test_weights_out_of_reach_are_one_line(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.download_url_to_file", unreachable)
    monkeypatch.setenv("TORCH_HOME", str(store / "torch"))
    result = CliRunner().invoke(
        train_command, ["--model", RESNET, "--pretrained", "default", "--epochs", "1"]
    )
    assert result.exit_code == 1
    assert "cannot be downloaded (Name or service not known)" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output
    assert mlflow.search_runs(search_all_experiments=True).empty


def test_a_missing_file_is_a_usage_error(store: Path) -> None:
    result = CliRunner().invoke(train_command, ["--model", RESNET, "--pretrained", "none.pth"])
    assert result.exit_code == 2
    assert "none.pth is not a file" in result.stderr


def test_weights_are_torchvisions_alone(store: Path, weights: Path) -> None:
    result = CliRunner().invoke(train_command, ["--model", "cnn", "--pretrained", str(weights)])
    assert result.exit_code == 2
    assert "cnn has no option pretrained" in result.stderr


@pytest.mark.parametrize("name", ["torchvision:", "torchvision:nothing", "torchvision:get_model"])
def test_an_unknown_name_is_a_usage_error(name: str, store: Path) -> None:
    result = CliRunner().invoke(train_command, ["--model", name])
    assert result.exit_code == 2
    assert name in result.stderr


@pytest.mark.parametrize("name", ["vit_b_32", "convnext_tiny"])
def test_what_cannot_take_small_images_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"torchvision:{name} cannot be adapted"):
        catalogue.build(f"torchvision:{name}", seed=42)


def test_a_run_can_be_loaded_and_rebuilt(store: Path, small: Dataset, weights: Path) -> None:
    few = Dataset(head(small.train, 96), head(small.test, 100), small.directory)
    recipe, architecture = Recipe(epochs=1, lr=0.01), Architecture(pretrained=str(weights))
    run_id = training.train(
        Experiment(RESNET, architecture=architecture, val_size=0, device="cpu", recipe=recipe), few
    )
    run = mlflow.get_run(run_id)
    assert run.data.params["model"] == RESNET
    assert run.data.params["pretrained"] == str(weights)
    (model,) = mlflow.search_logged_models(output_format="list")
    weights.rename(weights.with_suffix(".moved"))
    try:
        rebuilt = models.rebuild(model.model_uri)
    finally:
        weights.with_suffix(".moved").rename(weights)
    accuracy = evaluation.evaluate(rebuilt, few.test).accuracy
    assert accuracy == pytest.approx(run.data.metrics["test_accuracy"], abs=0.011)
