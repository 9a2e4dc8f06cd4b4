"""The file of predictions: small, exact where it must be, and never a way to run code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fashion.analysis import predictions
from fashion.data.dataset import Dataset
from fashion.errors import DataError
from fashion.training.evaluation import Evaluation


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / predictions.FILE


def answers(logits: torch.Tensor) -> Evaluation:
    return Evaluation(0.0, 0.0, 0.0, 0.0, logits)


def test_what_was_written_is_read(path: Path, small: Dataset) -> None:
    logits = torch.randn(500, 10)
    predictions.write(path, {"test": predictions.of(small.test, answers(logits))})
    ((split, found),) = predictions.read(path).items()
    assert split == "test"
    assert (found.digest, len(found)) == (small.test.digest, 500)
    assert torch.equal(found.right, logits.argmax(dim=1) == small.test.labels)
    assert torch.allclose(found.probabilities, logits.softmax(dim=1), atol=1e-3)
    assert path.stat().st_size < 500 * 30


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_prediction_survives_the_rounding_of_its_logits(
    path: Path, small: Dataset, scale: float
) -> None:
    logits = torch.full((500, 10), scale)
    logits[:, 7] += scale * 1e-5  # nothing in float16
    predictions.write(path, {"test": predictions.of(small.test, answers(logits))})
    found = predictions.read(path)["test"]
    assert (found.predicted == 7).all()
    assert found.logits.isfinite().all()


@pytest.mark.parametrize("damage", ["cut", "empty", "pickled", "short", "foreign"])
def test_a_damaged_file_is_refused_in_one_line(path: Path, small: Dataset, damage: str) -> None:
    predictions.write(path, {"test": predictions.of(small.test, answers(torch.zeros(500, 10)))})
    content = path.read_bytes()
    with np.load(path) as file:
        arrays = dict(file)
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickled":
        np.savez(path, **arrays | {"test_logits": np.array([print], dtype=object)})
    elif damage == "short":
        np.savez(path, **arrays | {"test_labels": arrays["test_labels"][:9]})
    else:
        np.savez(path, **arrays | {"test_labels": np.array("none")})
    with pytest.raises(DataError, match="is damaged"):
        predictions.read(path)
