"""The file with all predictions of a run: a compressed NumPy archive, without pickle.

From it models can be compared, calibrated or combined without running them again:

    numpy.load("predictions.npz")["test_logits"]  # float16, (10000, 10) of Fashion-MNIST
"""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fashion.data.dataset import Subset
from fashion.errors import DataError
from fashion.training.evaluation import Evaluation

FILE = "predictions.npz"
_LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True)
class Predictions:
    """A model's predictions on a subset.

    Attributes:
        digest: `Subset.digest` of the images.
        labels: the true classes, uint8, shape (N,).
        predicted: the predicted classes, uint8, shape (N,); in float16 the two largest logits of an
            image may be equal.
        logits: float16, shape (N, classes).
    """

    digest: str
    labels: Tensor
    predicted: Tensor
    logits: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> Tensor:
        """Whether each image is classified correctly: bool, shape (N,)."""
        return self.predicted == self.labels

    @property
    def probabilities(self) -> Tensor:
        """Softmax probabilities: float32, shape (N, classes)."""
        return self.logits.float().softmax(dim=1)


def of(subset: Subset, answers: Evaluation) -> Predictions:
    """Return what a model answered on `subset`."""
    return Predictions(
        digest=subset.digest,
        labels=subset.labels.to(torch.uint8),
        predicted=answers.logits.argmax(dim=1).to(torch.uint8),
        logits=answers.logits.clamp(-_LARGEST, _LARGEST).half(),
    )


def write(path: Path, splits: Mapping[str, Predictions]) -> None:
    """Write the predictions on each split ("validation", "test"): arrays such as test_logits."""
    arrays = {
        f"{split}_{name}": value if isinstance(value, str) else value.numpy()
        for split, predictions in splits.items()
        for name, value in vars(predictions).items()
    }
    np.savez_compressed(path, allow_pickle=False, **arrays)


def read(path: Path) -> dict[str, Predictions]:
    """Return the predictions in a file by split.

    Raises:
        DataError: the file is damaged, or not one of ours.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            splits = [name.removesuffix("_digest") for name in file if name.endswith("_digest")]
            found = {
                split: Predictions(
                    str(file[f"{split}_digest"]),
                    *(
                        torch.from_numpy(file[f"{split}_{name}"])
                        for name in ("labels", "predicted", "logits")
                    ),
                )
                for split in splits
            }
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} is damaged: {error}") from error
    for split, each in found.items():
        shapes = [tuple(tensor.shape) for tensor in (each.labels, each.predicted, each.logits)]
        size = len(each.labels) if each.labels.dim() else 0
        if shapes != [(size,), (size,), (size, each.logits.shape[-1])]:
            raise DataError(f"{path.name} is damaged: its {split} arrays have shapes {shapes}")
    return found
