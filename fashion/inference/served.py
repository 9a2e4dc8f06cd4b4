"""Answer pictures with classes: the registered model as `mlflow.pyfunc` loads it.

This file is stored with each logged model (see `fashion.tracking.faces`) and needs only mlflow,
torch and pillow. It imports nothing of this project but the file that is stored beside it.
"""

import base64
import binascii
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import pandas as pd
import torch
from mlflow.environment_variables import (
    _MLFLOW_IS_IN_SERVING_ENVIRONMENT,
    MLFLOW_ALLOW_PICKLE_DESERIALIZATION,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from torch import Tensor, nn

# Relative: beside a stored model this package has another name.
from .conversion import SIZE, read

COLUMN = "image"
INVERT = ("auto", "always", "never")
SHAPES = ((*SIZE,), (1, *SIZE), (SIZE[0] * SIZE[1],))
# Activations of larger batches would not fit in a CPU's cache, and take memory.
BATCH_SIZE = 100
# Longer text is base64, or no file's name on any system.
MAX_PATH = 4096


class InputError(MlflowException):
    """What was given is no picture, or not in one of the forms that `Served.predict` takes.

    MLflow's server answers it with status 400.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The reason."""
        return str(self.args[0])

    @message.setter
    def message(self, _: str) -> None:
        # MLflow's server would put the data before the reason.
        pass


class Logits(nn.Module):
    """The stored program as a module that can be moved and, unlike torch's own, set to `eval()`."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, float32 (N, 10), of float32 images (N, 1, 28, 28), in [0, 1]."""
        return self.program(images)

    def train(self, mode: bool = True) -> "Logits":
        """Stay in evaluation mode.

        Raises:
            NotImplementedError: `mode` is true; a program was traced in evaluation mode.
        """
        if mode:
            raise NotImplementedError("an exported program predicts only; it cannot be trained")
        return self


class Served:
    """A model that takes pictures and answers classes.

    Args:
        program: maps float32 images (N, 1, 28, 28) to logits.
        classes: names of the logits.
        temperature: what logits are divided by before the softmax.
    """

    def __init__(self, program: nn.Module, classes: Sequence[str], temperature: float) -> None:
        self._logits, self._classes, self._temperature = Logits(program), classes, temperature

    def get_raw_model(self) -> Logits:
        """Return the model itself; `PyFuncModel.get_raw_model` does."""
        return self._logits

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Return the class of each picture.

        Args:
            model_input: one picture or several. A picture is the content of a file of
                `conversion.IMAGE_FORMATS` (bytes, or a string in base64), the path of such a file
                (not behind a server), or an image like the dataset's: light on black, 28x28 or 784
                integers of 0 to 255 or floats of 0 to 1. Several are a list, an array (N, 28, 28),
                (N, 1, 28, 28) or (N, 784), a DataFrame or mapping with a column "image", or a
                DataFrame of 784 columns.
            params: "top", the number of classes to answer, 1 by default; "invert", as for
                `conversion.convert`.

        Returns:
            One row per picture, with the index of a given DataFrame. Its columns are class,
            probability and ground, then class_2, probability_2 and so on. The ground is "plain" or
            "cluttered"; if it is cluttered, the garment may not have been found, and probabilities
            are None.

        Raises:
            InputError: a picture or a parameter is wrong; no picture is then classified.
        """
        top, invert = self._parameters(params or {})
        pictures, index = _pictures(model_input)
        if isinstance(pictures, np.ndarray):
            images = _images(pictures)
            cluttered = [False] * len(images)
        else:
            images, cluttered = _read_all(pictures, invert)
        return self._answer(images, cluttered, top, index)

    def _parameters(self, params: Mapping[str, Any]) -> tuple[int, str]:
        top, invert = params.get("top", 1), params.get("invert", "auto")
        if not 1 <= top <= len(self._classes):
            raise InputError(f"top is {top}, not between 1 and {len(self._classes)}")
        if invert not in INVERT:
            raise InputError(f"invert is none of {', '.join(INVERT)}")
        return top, invert

    def _answer(
        self, images: Tensor, cluttered: Sequence[bool], top: int, index: pd.Index | None
    ) -> pd.DataFrame:
        with torch.inference_mode():
            answers = [self._logits(batch) for batch in images.split(BATCH_SIZE) if len(batch)]
            logits = torch.cat([*answers, torch.empty(0, len(self._classes))])
            best = (logits / self._temperature).softmax(dim=1).topk(top, dim=1)
        columns: dict[str, Any] = {}
        for rank in range(top):
            suffix = f"_{rank + 1}" if rank else ""
            columns[f"class{suffix}"] = [
                self._classes[place] for place in best.indices[:, rank].tolist()
            ]
            probabilities = [
                None if unsure else probability
                for unsure, probability in zip(
                    cluttered, best.values[:, rank].tolist(), strict=True
                )
            ]
            # As floats they would be NaN, which is not JSON.
            columns[f"probability{suffix}"] = pd.Series(
                probabilities, index, dtype=object if any(cluttered) else float
            )
            if not rank:
                columns["ground"] = ["cluttered" if each else "plain" for each in cluttered]
        return pd.DataFrame(columns, index)


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> Served:  # noqa: ARG001
    """Load the model in a folder; MLflow calls this.

    Raises:
        MlflowException: the program is damaged, or contains pickles.
    """
    name = MLFLOW_ALLOW_PICKLE_DESERIALIZATION.name
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        program = mlflow.pytorch.load_model(path)
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    metadata = Model.load(path).metadata or {}
    return Served(program, metadata["classes"], metadata["temperature"])


def _pictures(data: Any) -> tuple[list[Any] | np.ndarray, pd.Index | None]:
    """Return the pictures, as one array if all are numbers, and the index of a DataFrame."""
    if isinstance(data, list) and data and all(isinstance(each, Mapping) for each in data):
        data = pd.DataFrame(data)
    if isinstance(data, (pd.DataFrame, Mapping)):
        index = data.index if isinstance(data, pd.DataFrame) else None
        if COLUMN in data:
            if isinstance(data[COLUMN], pd.DataFrame):
                raise InputError(f'there are several columns "{COLUMN}"')
            pictures, _ = _pictures(data[COLUMN])
            return pictures, index
        if isinstance(data, pd.DataFrame) and data.shape[1] == SHAPES[2][0]:
            return data.to_numpy(), index
        raise InputError(f'there is no column "{COLUMN}", and not {SHAPES[2][0]} columns of pixels')
    if isinstance(data, pd.Series):
        return data.tolist(), data.index
    if isinstance(data, (bytes, bytearray, str, Path)):
        return [data], None
    if isinstance(data, (list, tuple)) and any(
        isinstance(each, (bytes, bytearray, str, Path)) for each in data
    ):
        return list(data), None
    array = _array(data)
    if array.dtype.kind in "OU" or not array.ndim:
        return array.ravel().tolist(), None
    return array, None


def _array(data: Any) -> np.ndarray:
    try:
        array = np.asarray(data)
    except Exception as error:  # of lists with different lengths, and of whatever was given
        raise InputError("the images have different shapes") from error
    if array.dtype.kind == "S":
        raise InputError("numpy cuts zeros off the end of bytes; give them as a list")
    return array


def _images(array: np.ndarray) -> Tensor:
    """Return an array of one or several images as float32 (N, 1, 28, 28), in [0, 1]."""
    if array.shape == SIZE:
        array = array[np.newaxis]
    if not len(array):
        return torch.empty(0, 1, *SIZE)
    if array.shape[1:] not in SHAPES:
        raise InputError(
            f"the shape is {array.shape}, not (28, 28), (N, 28, 28), (N, 1, 28, 28) or (N, 784)"
        )
    kind = array.dtype.kind
    if kind not in "iuf":
        raise InputError(f"the pixels are {array.dtype}, neither integers nor floats")
    low, high, limit = array.min(), array.max(), 1 if kind == "f" else 255
    if not (low >= 0 and high <= limit):  # NaN is neither
        hint = "; divide by 255, or convert to uint8" if kind == "f" and high <= 255 else ""
        numbers = "floats" if kind == "f" else "integers"
        raise InputError(
            f"{numbers} must be within 0 to {limit}, these are {low:g} to {high:g}{hint}"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)).view(-1, 1, *SIZE)
    return pixels if kind == "f" else pixels / 255


def _read_all(pictures: Iterable[Any], invert: str) -> tuple[Tensor, list[bool]]:
    """Return float32 images (N, 1, 28, 28), and which have cluttered ground."""
    images, cluttered = [torch.empty(0, 1, *SIZE)], []
    for number, picture in enumerate(pictures, 1):
        try:
            image, unsure = _read(picture, invert)
        except (ValueError, OSError, InputError) as error:
            raise InputError(f"{error} (picture {number})") from error
        images.append(image)
        cluttered.append(unsure)
    return torch.cat(images), cluttered


def _read(picture: Any, invert: str) -> tuple[Tensor, bool]:
    if isinstance(picture, str):
        picture = _from_text(picture)
    if isinstance(picture, (bytes, bytearray, Path)):
        source = bytes(picture) if isinstance(picture, bytearray) else picture
        if isinstance(source, Path) and source.is_dir():
            raise ValueError("a folder is no picture; give the files in it")
        image, cluttered = read(source, invert)
        return image.unsqueeze(0).to(torch.float32) / 255, cluttered
    array = _array(picture)
    if array.ndim == 0:  # MLflow makes them of texts
        if array.dtype.kind == "U":
            return _read(array.item(), invert)
        raise InputError(
            f"{type(picture).__name__} is no picture: give the content of an image file (in JSON"
            " as base64), its path, or pixels"
        )
    if array.shape not in SHAPES:
        raise InputError(f"the shape is {array.shape}, not (28, 28), (1, 28, 28) or (784,)")
    return _images(array.reshape(1, -1)), False


def _from_text(text: str) -> Path | bytes:
    """Return the file that a text names, or else what it encodes."""
    local = not _behind_server()
    if local and 0 < len(text) < MAX_PATH and os.path.lexists(text.replace("\0", "")):
        return Path(text)
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        wanted = "the path of an existing file or base64" if local else "base64"
        raise ValueError(f"the text is not {wanted}") from error


def _behind_server() -> bool:
    """Return whether requests come from elsewhere: these must not name files of this machine."""
    return bool(_MLFLOW_IS_IN_SERVING_ENVIRONMENT.get()) or "mlserver" in sys.modules
