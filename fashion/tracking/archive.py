"""Fetch stored models, and load them without running code that they bring along."""

import hashlib
import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow.environment_variables import MLFLOW_ALLOW_PICKLE_DESERIALIZATION
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from torch import nn

from fashion import advice
from fashion.errors import RegistryError
from fashion.settings.task import FASHION_MNIST, Task
from fashion.tracking import faces
from fashion.tracking.store import environment, reason, without_progress_bar

ARCHIVE = "model.pt2"
# What `mlflow.pytorch` writes beside or instead of the archive when it pickles a model.
PICKLED = ("model.pth", "pickle_module_info.txt")
# The module by which MLflow serves a model that brings no code along.
LOADER = "mlflow.pytorch"
# How the URI of a logged model begins, rather than that of a version of a registered one.
LOGGED_MODEL = "models:/m-"
# Height and width of an image.
LARGEST = 1024


@dataclass(frozen=True)
class Archive:
    """The files of a stored model in a temporary folder, checked to bring no code of others along.

    Attributes:
        uri: where they were fetched from.
        folder: the folder.
        program: the file of the torch.export program, which may still be damaged.
        run_id: the run that logged the model; None if no run did.
        temperature: what its logits are divided by before the softmax.
        task: what it classifies.
    """

    uri: str
    folder: Path
    program: Path
    run_id: str | None
    temperature: float
    task: Task

    def digest(self) -> str:
        """Return the SHA-256 of the program."""
        with self.program.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def load(self) -> nn.Module:
        """Return the model, ready to predict on the CPU.

        Raises:
            RegistryError: the program is damaged or contains pickles.
        """
        refuse_pickle = environment({MLFLOW_ALLOW_PICKLE_DESERIALIZATION.name: "false"})
        try:
            with _quiet(logging.getLogger("torch.export")), refuse_pickle:
                return mlflow.pytorch.load_model(str(self.folder))
        except Exception as error:  # damaged files raise many types
            if MLFLOW_ALLOW_PICKLE_DESERIALIZATION.name in str(error):
                raise _pickled(self.uri) from error
            raise RegistryError(f"{self.uri} cannot be loaded: {reason(error)}") from error


@contextmanager
def fetched(uri: str) -> Iterator[Archive]:
    """Fetch a model from the tracking store or the registry; its files are deleted afterwards.

    MLflow's own loader would write into the store, if that is a local folder, and it imports code
    that a model names before it checks whether the model is pickled.

    Args:
        uri: for example models:/fashion-mnist-cnn@champion, or models:/m-... for a run's model.

    Raises:
        RegistryError: the model does not exist, is incomplete, is pickled or brings code along.
    """
    with tempfile.TemporaryDirectory() as folder:
        with _readable(uri):
            path = _download(uri, folder)
            model = Model.load(str(path))
            program = _program(uri, path, model.flavors)
            temperature = _temperature(uri, model)
        yield Archive(uri, path, program, model.run_id, temperature, _task(uri, model))


def task_of(uri: str) -> Task:
    """Return what a stored model classifies, of which only the description is fetched.

    Raises:
        RegistryError: the model does not exist, or its description is damaged.
    """
    with tempfile.TemporaryDirectory() as folder, _readable(uri):
        root = uri.rstrip("/")
        if root.startswith(LOGGED_MODEL):  # MLflow knows no paths below these
            root = mlflow.get_logged_model(root.removeprefix("models:/")).artifact_location
        model = Model.load(str(_download(f"{root}/{MLMODEL_FILE_NAME}", folder)))
    return _task(uri, model)


def _download(uri: str, folder: str) -> Path:
    # Without a destination, MLflow uses and changes the files of a local store.
    with without_progress_bar():
        return Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder))


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turn what goes wrong while a model is read into one line."""
    try:
        yield
    except RegistryError:
        raise
    except Exception as error:  # each store has its own; damaged files raise many types
        if _names_a_version(uri) and "not found" in str(error):
            raise RegistryError(
                f"{uri} does not exist: {reason(error).rstrip('.')}; register a model first"
                f" ({advice.command('register')})"
            ) from error
        raise RegistryError(f"{uri} cannot be loaded: {reason(error)}") from error


def _program(uri: str, folder: Path, flavors: Mapping[str, Mapping[str, Any]]) -> Path:
    """Return the file of the model's program.

    Raises:
        RegistryError: the model is something else than a program that `mlflow.pytorch` loads, or
            brings other code along than this project's.
    """
    for name, flavor in flavors.items():
        plain = not flavor.get("code") and flavor.get("loader_module", LOADER) == LOADER
        ours = name == "python_function" and faces.is_ours(folder, flavor)
        if name not in ("pytorch", "python_function") or not (plain or ours):
            raise RegistryError(
                f"{uri} cannot be loaded: it needs code from outside this project, or from"
                " another version of it, which can do anything"
            )
    if "pytorch" not in flavors:
        raise RegistryError(f"{uri} cannot be loaded: it is not a PyTorch model")
    data = (folder / flavors["pytorch"]["model_data"]).resolve()
    if any((data / name).exists() for name in PICKLED):
        raise _pickled(uri)
    if not data.is_relative_to(folder.resolve()) or not (data / ARCHIVE).is_file():
        raise RegistryError(f"{uri} cannot be loaded: its file {ARCHIVE} is missing")
    return data / ARCHIVE


def _temperature(uri: str, model: Model) -> float:
    # Models logged by other projects, or before they were calibrated, have none.
    temperature = (model.metadata or {}).get("temperature", 1.0)
    if not isinstance(temperature, (int, float)) or not 0 < temperature < math.inf:
        raise RegistryError(
            f"{uri} cannot be loaded: its temperature, {str(temperature)[:20]}, is not positive"
        )
    return temperature


def _task(uri: str, model: Model) -> Task:
    # Models logged by other projects, or before there were other tasks, say nothing of theirs.
    metadata = model.metadata or {}
    if "shape" not in metadata:
        return FASHION_MNIST
    for name, allowed in _OF_A_TASK.items():
        if not allowed(metadata.get(name)):
            raise RegistryError(
                f"{uri} cannot be loaded: its metadata has no valid {name} of a task"
            )
    if metadata["extract"] and tuple(metadata["shape"]) != FASHION_MNIST.shape:
        raise RegistryError(
            f"{uri} cannot be loaded: foregrounds are cut out for images of"
            f" {FASHION_MNIST.size} only"
        )
    fields = {name: metadata[name] for name in _OF_A_TASK}
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Task(**fields | lists)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _are_names(value: Any) -> bool:
    """Return whether these are names of classes."""
    several = isinstance(value, list) and len(value) > 1
    return several and all(map(_is_text, value)) and len(set(value)) == len(value)


def _are_levels(value: Any) -> bool:
    """Return whether these are numbers by channel, or none."""
    return isinstance(value, list) and all(
        isinstance(each, (int, float)) and math.isfinite(each) for each in value
    )


def _is_shape(value: Any) -> bool:
    # `type`, as True is an int. Images of any size could fill the memory.
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(type(each) is int for each in value)
        and value[0] in (1, 3)
        and all(0 < each <= LARGEST for each in value[1:])
    )


_OF_A_TASK: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "title": _is_text,
    "classes": _are_names,
    "shape": _is_shape,
    "extract": lambda value: isinstance(value, bool),
    "mean": _are_levels,
    "std": _are_levels,
}


def _pickled(uri: str) -> RegistryError:
    return RegistryError(
        f"{uri} cannot be loaded: it is damaged or pickled, and unpickling can run any code"
    )


def _names_a_version(uri: str) -> bool:
    return uri.startswith("models:/") and not uri.startswith(LOGGED_MODEL)


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Silence a logger: torch logs a traceback before it raises the same error."""
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
