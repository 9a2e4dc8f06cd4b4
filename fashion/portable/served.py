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
from .conversion import fit, read

COLUMN = "image"
INVERT = ("auto", "always", "never")
# Activations of larger batches would not fit in a CPU's cache, and take memory: images, and values
# of images.
BATCH_SIZE, BATCH_VALUES = 100, 2**24
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
        """Return logits, float32 (N, classes), of float32 images (N, C, H, W), in [0, 1]."""
        return self.program(images)

    def train(self, mode: bool = True) -> "Logits":
        """Stay in evaluation mode.

        Raises:
            NotImplementedError: `mode` is true; a program was traced in evaluation mode.
        """
        if mode:
            raise NotImplementedError("an exported program predicts only; it cannot be trained")
        return self


class Pixels:
    """The forms in which the pixels of images are taken.

    Args:
        shape: channels, height and width of an image.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        channels, height, width = shape
        self.shape = channels, height, width
        self.size = channels * height * width
        last = height, width, channels
        planes = (self.shape, last) if channels > 1 else ((height, width), self.shape, last)
        # Of one image; where two are equal, the first is meant.
        self.forms: tuple[tuple[int, ...], ...] = (*planes, (self.size,))

    def images(self, array: np.ndarray) -> Tensor:
        """Return an array of one or several images as float32 (N, C, H, W), in [0, 1].

        Raises:
            InputError: it has another shape, another type, or values out of range.
        """
        # One row of pixels is as likely a mistake.
        if array.shape in self.forms[:-1]:
            array = array[np.newaxis]
        if not len(array):
            return torch.empty(0, *self.shape)
        if array.shape[1:] not in self.forms:
            one = self.forms[0]
            several = (f"(N, {_joined(form)})" for form in self.forms)
            raise InputError(f"the shape is {array.shape}, not {_either([str(one), *several])}")
        return self._scaled(array)

    def image(self, array: np.ndarray) -> Tensor:
        """Return an array of one image as float32 (1, C, H, W), in [0, 1].

        Raises:
            InputError: as for `images`.
        """
        if array.shape not in self.forms:
            forms = [f"({_joined(form)}{',' * (len(form) == 1)})" for form in self.forms]
            raise InputError(f"the shape is {array.shape}, not {_either(forms)}")
        return self._scaled(array[np.newaxis])

    def _scaled(self, array: np.ndarray) -> Tensor:
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
        if array.ndim == 4 and array.shape[1:] != self.shape:  # channels last
            array = array.transpose(0, 3, 1, 2)
        pixels = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
        pixels = pixels.view(-1, *self.shape)
        return pixels if kind == "f" else pixels / 255


class Served:
    """A model that takes pictures and answers classes.

    Args:
        program: maps float32 images (N, C, H, W) to logits.
        classes: names of the logits.
        temperature: what logits are divided by before the softmax.
        shape: channels, height and width of an image: C, H, W.
        extract: whether the foreground of a picture is cut out, by `conversion.read`; otherwise
            the whole picture is resized, by `conversion.fit`.
    """

    def __init__(
        self,
        program: nn.Module,
        classes: Sequence[str],
        temperature: float,
        shape: Sequence[int],
        extract: bool,
    ) -> None:
        self._logits, self._classes, self._temperature = Logits(program), classes, temperature
        self._pixels, self._extract = Pixels(shape), extract
        self._at_once = max(1, min(BATCH_SIZE, BATCH_VALUES // self._pixels.size))

    def get_raw_model(self) -> Logits:
        """Return the model itself; `PyFuncModel.get_raw_model` does."""
        return self._logits

    def predict(
        self, model_input: Any, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame | list[dict[str, Any]]:
        """Return the class of each picture.

        Args:
            model_input: one picture or several. A picture is the content of a file of
                `conversion.IMAGE_FORMATS` (bytes, or a string in base64), the path of such a file
                (not behind a server), or an image like those of the training data: integers of 0 to
                255 or floats of 0 to 1, of shape (C, H, W), (H, W, C), (C * H * W,) or, of one
                channel, (H, W). Several are a list, an array with a first dimension more, a
                DataFrame or mapping with a column "image", or a DataFrame with a column per pixel.
            params: "top", the number of classes to answer, 1 by default; where the foreground is
                cut out, "invert", as for `conversion.convert`.

        Returns:
            A DataFrame of one row per picture, with the index of a given one; in MLflow's server a
            list of dictionaries, which is the same in JSON. The columns are class and probability,
            then class_2, probability_2 and so on. Where the foreground is cut out, the third is
            ground, "plain" or "cluttered"; if it is cluttered, the garment may not have been found,
            and probabilities are None.

        Raises:
            InputError: a picture or a parameter is wrong; no picture is then classified.
        """
        top, invert = self._parameters(params or {})
        pictures, index = _pictures(model_input, self._pixels.size)
        rows = []
        if isinstance(pictures, np.ndarray):
            for images in self._pixels.images(pictures).split(self._at_once):
                rows += self._rows(images, [False] * len(images), top)
        else:
            for first in range(0, len(pictures), self._at_once):
                some = pictures[first : first + self._at_once]
                rows += self._rows(*self._read_all(some, first, invert), top)
        # Making a table, from which MLflow makes rows again, takes a third of a request's time.
        return rows if _in_mlflows_server() else self._table(rows, top, index)

    def _parameters(self, params: Mapping[str, Any]) -> tuple[int, str]:
        top, invert = params.get("top", 1), params.get("invert", "auto")
        if not 1 <= top <= len(self._classes):
            raise InputError(f"top is {top}, not between 1 and {len(self._classes)}")
        if invert not in INVERT:
            raise InputError(f"invert is none of {', '.join(INVERT)}")
        return top, invert

    def _rows(self, images: Tensor, cluttered: Sequence[bool], top: int) -> list[dict[str, Any]]:
        """Return for each image the best classes, by the names of the columns."""
        with torch.inference_mode():
            logits = self._logits(images) if len(images) else torch.empty(0, len(self._classes))
            best = (logits / self._temperature).softmax(dim=1).topk(top, dim=1)
        rows = []
        for unsure, places, probabilities in zip(
            cluttered, best.indices.tolist(), best.values.tolist(), strict=True
        ):
            row: dict[str, Any] = {}
            for rank, (place, probability) in enumerate(zip(places, probabilities, strict=True), 1):
                suffix = f"_{rank}" if rank > 1 else ""
                row[f"class{suffix}"] = self._classes[place]
                row[f"probability{suffix}"] = None if unsure else probability
                if rank == 1 and self._extract:
                    row["ground"] = "cluttered" if unsure else "plain"
            rows.append(row)
        return rows

    def _table(
        self, rows: Sequence[Mapping[str, Any]], top: int, index: pd.Index | None
    ) -> pd.DataFrame:
        """Return the rows as a table, whose columns are known even if there are none."""
        names = ["class", "probability", *(["ground"] if self._extract else [])]
        for rank in range(2, top + 1):
            names += [f"class_{rank}", f"probability_{rank}"]
        columns: dict[str, Any] = {}
        for name in names:
            columns[name] = [row[name] for row in rows]
            if name.startswith("probability"):
                # As floats they would be NaN, which is not JSON.
                kind = object if None in columns[name] else float
                columns[name] = pd.Series(columns[name], index, dtype=kind)
        return pd.DataFrame(columns, index)

    def _read_all(
        self, pictures: Iterable[Any], first: int, invert: str
    ) -> tuple[Tensor, list[bool]]:
        """Return float32 images (N, C, H, W), and which have cluttered ground.

        Args:
            pictures: at least one.
            first: place of the first of them among all that were given.
            invert: as for `conversion.convert`.
        """
        images, cluttered = [], []
        for number, picture in enumerate(pictures, first + 1):
            try:
                image, unsure = self._read(picture, invert)
            except (ValueError, OSError, InputError) as error:
                raise InputError(f"{error} (picture {number})") from error
            images.append(image)
            cluttered.append(unsure)
        return torch.cat(images), cluttered

    def _read(self, picture: Any, invert: str) -> tuple[Tensor, bool]:
        if isinstance(picture, str):
            picture = _from_text(picture)
        if isinstance(picture, (bytes, bytearray, Path)):
            source = bytes(picture) if isinstance(picture, bytearray) else picture
            if isinstance(source, Path) and source.is_dir():
                raise ValueError("a folder is no picture; give the files in it")
            if self._extract:
                image, cluttered = read(source, invert)
            else:
                image, cluttered = fit(source, self._pixels.shape), False
            return image.unsqueeze(0).to(torch.float32) / 255, cluttered
        array = _array(picture)
        if array.ndim == 0:  # MLflow makes them of texts
            if array.dtype.kind == "U":
                return self._read(array.item(), invert)
            raise InputError(
                f"{type(picture).__name__} is no picture: give the content of an image file (in"
                " JSON as base64), its path, or pixels"
            )
        return self._pixels.image(array), False


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
    names = "classes", "temperature", "shape", "extract"
    return Served(program, *(metadata[name] for name in names))


def _pictures(data: Any, size: int) -> tuple[list[Any] | np.ndarray, pd.Index | None]:
    """Return the pictures, as one array if all are numbers, and the index of a DataFrame.

    Args:
        data: what was given.
        size: number of values of an image.
    """
    if isinstance(data, list) and data and all(isinstance(each, Mapping) for each in data):
        data = pd.DataFrame(data)
    if isinstance(data, (pd.DataFrame, Mapping)):
        index = data.index if isinstance(data, pd.DataFrame) else None
        if COLUMN in data:
            if isinstance(data[COLUMN], pd.DataFrame):
                raise InputError(f'there are several columns "{COLUMN}"')
            pictures, _ = _pictures(data[COLUMN], size)
            return pictures, index
        if isinstance(data, pd.DataFrame) and data.shape[1] == size:
            return data.to_numpy(), index
        raise InputError(f'there is no column "{COLUMN}", and not {size} columns of pixels')
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


def _joined(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _either(texts: Sequence[str]) -> str:
    return f"{', '.join(texts[:-1])} or {texts[-1]}"


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
    return _in_mlflows_server() or "mlserver" in sys.modules


def _in_mlflows_server() -> bool:
    return bool(_MLFLOW_IS_IN_SERVING_ENVIRONMENT.get())
