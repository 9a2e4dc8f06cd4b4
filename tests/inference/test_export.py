"""What `export` writes gives the same answers elsewhere, and is not left behind if it does not."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from entrypoints.export import export as command
from fashion.data.dataset import Dataset, to_float
from fashion.files import FileError
from fashion.inference import export
from fashion.models import catalogue
from fashion.tracking import models, store, training
from fashion.training import evaluation
from tests.conftest import HANG_SECONDS, ROOT


@pytest.mark.parametrize("name", ["baseline", "cnn"])
def test_a_logged_model_comes_back_as_the_lab_saves_it(
    train_small: Callable[..., str], dataset: Dataset, store: Path, name: str
) -> None:
    uri = models.model_uri(training.mlflow.get_run(train_small(name)))
    result = CliRunner().invoke(command, ["--model-uri", uri, "--name", name])
    assert result.exit_code == 0, result.output
    path = Path("models", f"{name}.pth").absolute()
    assert result.stdout.startswith(f"{path}: {path.stat().st_size:,} bytes\n")
    assert "weights_only=True" in result.stdout

    rebuilt = catalogue.build(name, seed=7)
    rebuilt.load_state_dict(torch.load(path, weights_only=True))
    images = dataset.test.images[:200]
    expected = evaluation.predict(models.load(uri), images)
    assert torch.allclose(evaluation.predict(rebuilt.eval(), images), expected, rtol=0, atol=1e-5)
    assert list(path.parent.iterdir()) == [path]


def test_a_logged_model_runs_in_onnxruntime_on_any_batch(
    train_small: Callable[..., str], dataset: Dataset, store: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    uri = models.model_uri(training.mlflow.get_run(train_small("cnn")))
    result = CliRunner().invoke(
        command, ["--model-uri", uri, "--format", "onnx", "--output-dir", "deep/down"]
    )
    assert result.exit_code == 0, result.output
    assert "300 test images" in result.stdout
    path = store / "deep/down/fashion-mnist-cnn.onnx"
    assert list(path.parent.iterdir()) == [path]

    session = onnxruntime.InferenceSession(path)
    images = dataset.test.images[:64]
    expected = evaluation.predict(models.load(uri), images)
    for size in (1, 5, 64):
        (logits,) = session.run(["logits"], {"images": to_float(images[:size]).numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), expected[:size], rtol=0, atol=1e-4)
    # The file says nothing of the machine it was made on.
    assert b".py" not in path.read_bytes()


def test_a_file_that_does_not_read_back_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = catalogue.build("baseline", seed=0)
    path = tmp_path / "models" / "baseline.pth"
    damaged = {name: tensor + 1e-6 for name, tensor in model.state_dict().items()}
    monkeypatch.setattr(torch, "load", Mock(return_value=damaged))
    with pytest.raises(export.ExportError, match="differs when read back"):
        export.to_pth(model, path)
    assert not list(path.parent.iterdir())


def test_wrong_logits_of_onnxruntime_leave_the_earlier_file_alone(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "baseline.onnx"
    path.write_text("earlier")
    predict = evaluation.predict
    monkeypatch.setattr(evaluation, "predict", lambda model, images: predict(model, images) + 0.01)
    with pytest.raises(export.ExportError, match="batches of 1"):
        export.to_onnx(catalogue.build("baseline", seed=0).eval(), path, dataset.test.images[:8])
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_onnx_package_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "connect", lambda: None)
    monkeypatch.setattr(models, "load", Mock(return_value=nn.Flatten()))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    result = CliRunner().invoke(command, ["--format", "onnx"])
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: onnxscript not installed: ")
    assert result.stderr.endswith("uv sync --inexact --only-group onnx\n")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file")
    with pytest.raises(FileError, match="cannot write"):
        export.to_pth(nn.Linear(2, 2), tmp_path / "models" / "linear.pth")


@pytest.mark.parametrize("name", [".hidden", "..", "a/b", "/tmp/a", "a b", "a\n", "é"])
def test_a_name_that_is_no_plain_file_stem_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = Mock()
    monkeypatch.setattr(models, "load", load)
    result = CliRunner().invoke(command, ["--name", name])
    load.assert_not_called()
    assert result.exit_code == 2
    assert "letters, digits" in result.stderr


def test_help_imports_neither_torch_nor_mlflow() -> None:
    program = """
import sys
from click.testing import CliRunner
from entrypoints.export import export
assert CliRunner().invoke(export, ["--help"]).exit_code == 0
assert not {"torch", "mlflow"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=HANG_SECONDS)
