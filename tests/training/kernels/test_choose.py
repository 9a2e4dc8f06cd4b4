"""Which kernels compute what, and what happens on a machine that has no compiler."""

from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import CliRunner

from entrypoints.train import train as train_command
from fashion.data.dataset import Dataset
from fashion.files import cache_dir
from fashion.models import catalogue
from fashion.settings.experiment import Architecture, Recipe
from fashion.training import loop
from fashion.training.kernels import conv3x3
from fashion.training.kernels.choose import choose
from fashion.training.kernels.compile import KernelError, library
from tests.conftest import head


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A machine that has no C compiler and has never had one."""
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.cache_clear()
    yield
    library.cache_clear()


@pytest.mark.usefixtures("native_kernels")
def test_they_serve_the_labs_models_alone() -> None:
    def used(kernels: str, model: torch.nn.Module, **settings: object) -> str:
        return choose(model, Recipe(kernels=kernels, **settings)).name

    for name in ("baseline", "nonlinear", "cnn"):
        assert used("native", catalogue.build(name, seed=42)) == "native"
        assert used("auto", catalogue.build(name, seed=42)) == "native"
        assert used("torch", catalogue.build(name, seed=42)) == "torch"
        assert used("auto", catalogue.build(name, seed=42).double()) == "torch"
    for architecture in (
        Architecture(65),
        Architecture(blocks=1),
        Architecture(blocks=3),
        Architecture(batch_norm=True),
    ):
        assert used("auto", catalogue.build("cnn", 42, architecture)) == "torch"
    assert used("auto", catalogue.build("baseline", seed=42), momentum=0.9) == "torch"
    assert used("auto", catalogue.build("cnn", seed=42), momentum=0.9) == "native"
    assert used("native", catalogue.build("resnet", seed=42)) == "torch"


@pytest.mark.usefixtures("native_kernels")
def test_what_trains_validates_too(small: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the native kernels, where several processes or bfloat16 have PyTorch's train."""
    model = catalogue.build("cnn", seed=42)
    assert choose(model, Recipe()).name == "native"
    shared = choose(model, Recipe(), nproc=2)
    assert (shared.name, shared.forward) == ("torch", model)

    monkeypatch.setattr(conv3x3, "forward", lambda *_: pytest.fail("native kernels were used"))
    recipe = Recipe(epochs=1, precision="bfloat16")
    assert choose(model, recipe).name == "torch"
    (epoch,) = loop.train(model, head(small.train, 320), recipe, head(small.test, 100))
    assert epoch.metrics["val_accuracy"] > 0


@pytest.mark.usefixtures("native_kernels")
def test_the_run_says_what_computed_it(train_small: Callable[..., str]) -> None:
    for asked, used in {"auto": "native", "torch": "torch"}.items():
        params = mlflow.get_run(train_small("cnn", kernels=asked)).data.params
        assert (params["kernels"], params["kernels_used"]) == (asked, used)


def test_without_a_compiler_pytorch_trains(
    no_compiler: None,
    train_small: Callable[..., str],
    small: Dataset,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = mlflow.get_run(train_small("cnn"))
    assert run.data.params["kernels"] == "auto"
    assert run.data.params["kernels_used"] == "torch"
    assert [record.getMessage() for record in caplog.records if record.name.startswith("fashion")]
    with pytest.raises(KernelError, match="no-such-compiler"):
        choose(catalogue.build("cnn", seed=42), Recipe(kernels="native"))


def test_asked_for_without_a_compiler_they_are_refused_before_a_run(
    no_compiler: None, store: Path
) -> None:
    result = CliRunner().invoke(train_command, ["--kernels", "native"])
    assert result.exit_code == 2
    assert "no-such-compiler" in result.stderr
    assert "--kernels torch" in result.stderr
    assert "Traceback" not in result.stderr
    assert mlflow.search_runs(search_all_experiments=True).empty


def test_a_compiler_that_fails_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, no_compiler: None, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(KernelError):
        library()
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("size", [0, 4096])
def test_a_truncated_file_in_the_cache_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    whole = Path(library()._name)
    content = whole.read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    damaged = cache_dir() / "kernels" / whole.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(content[:size])
    library.cache_clear()
    try:
        loaded = Path(library()._name)
        assert loaded.is_relative_to(tmp_path)
        assert len(loaded.read_bytes()) > 4096
    finally:
        library.cache_clear()
