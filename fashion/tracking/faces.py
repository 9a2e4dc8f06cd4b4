"""Save models with two faces: a torch.export program, and one that answers pictures with classes.

`mlflow.pytorch` loads the program, which maps images to logits. `mlflow.pyfunc`, and with it
`mlflow models serve`, loads the program by `fashion.portable.served`. This and the file that it
imports are stored with the model, so that it works where this project is not installed.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
from mlflow import pyfunc
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from torch import nn

from fashion import portable
from fashion.errors import some
from fashion.settings.task import Task

CODE = "code"
FILES = ("conversion.py", "served.py")
# `digest` of each version of these files, so that its models stay usable; a change adds one.
RELEASED = frozenset(
    {
        "b42bceefefb72b886c3b614cf048250bceb15d29c2be1a511edfd318851f6616",
        "2658b9c03015ecfcbf678f170392ac14526f3f96bd91fd4179e90a6c0df7dff4",
        "a7c390297bf93e9df14291caacd317403d123445f6df4cd56eb1d1b5dc8d72a5",
    }
)


def signature(task: Task) -> ModelSignature:
    """Return what a model of `task` answers; the UI shows it."""
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.string, "class"),
        ColSpec(DataType.double, "probability", required=not task.extract),
    ]
    params = [ParamSpec("top", DataType.long, 1)]
    if task.extract:
        outputs.append(ColSpec(DataType.string, "ground"))
        params.append(ParamSpec("invert", DataType.string, "auto"))
    # No inputs, as MLflow would let either files or arrays pass.
    return ModelSignature(inputs=None, outputs=Schema(outputs), params=ParamSchema(params))


def description(task: Task) -> dict[str, str]:
    """Return what a model of `task` takes and answers, in words."""
    channels, height, width = task.shape
    one, ground, light = "pictures", "", ""
    if task.extract:
        one, light = "pictures of one object each", ", light on black"
        ground = ", null on cluttered ground; ground, plain or cluttered"
    colours = "" if channels == 1 else f" in {channels} channels"
    return {
        "inputs": f"{one}: PNG, JPEG or WebP, in a column image (bytes, in JSON base64), file"
        f" paths, or images of {height}x{width} pixels{colours}{light}, uint8 or floats in [0, 1]",
        "outputs": f"class, one of {some(task.classes)}; its probability{ground}",
        "pytorch": f"float32 images (N, {channels}, {height}, {width}), in [0, 1]{light}, to logits"
        f" (N, {len(task.classes)})",
    }


def save_model(
    path: str,
    mlflow_model: Model,
    *,
    model: nn.Module,
    task: Task,
    temperature: float,
    **options: Any,
) -> None:
    """Save a model with both faces. `Model.log` takes this module as a flavour.

    Args:
        path: the folder to write.
        mlflow_model: its description, which is completed.
        model: in evaluation mode, on the CPU.
        task: what it classifies; `archive.Archive.task` reads it from the metadata.
        temperature: what logits are divided by before the softmax; see `calibration`.
        options: of `mlflow.pytorch.save_model`.
    """
    options.pop("validate_serving_input", None)
    mlflow.pytorch.save_model(model, path, mlflow_model=mlflow_model, **options)
    files = code()
    package = _package(files)
    (Path(path) / CODE / package).mkdir(parents=True)
    for name, content in files.items():
        (Path(path) / CODE / package / name).write_bytes(content)
    environment = mlflow_model.flavors[pyfunc.FLAVOR_NAME][pyfunc.ENV]
    pyfunc.add_to_model(
        mlflow_model,
        loader_module=f"{package}.served",
        code=CODE,
        conda_env=environment["conda"],
        python_env=environment["virtualenv"],
    )
    mlflow_model.signature = signature(task)
    mlflow_model.metadata = {
        **(mlflow_model.metadata or {}),
        **_of_task(task),
        "temperature": temperature,
        "description": description(task),
    }
    mlflow_model.save(str(Path(path) / "MLmodel"))


def _of_task(task: Task) -> dict[str, Any]:
    # YAML and JSON know no tuples.
    fields = asdict(task).items()
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields}


def code() -> dict[str, bytes]:
    """Return the files that are stored with a model: content by name."""
    folder = Path(portable.__path__[0])
    return {
        "__init__.py": b"",
        # Python would make a folder of this name in the store, with compiled code that nobody can
        # compare with its source.
        "__pycache__": b"A file, so that Python does not store compiled code here.\n",
        **{name: (folder / name).read_bytes() for name in FILES},
    }


def digest(files: Mapping[str, bytes]) -> str:
    """Return the SHA-256 of files and their names."""
    whole = hashlib.sha256()
    for name, content in sorted(files.items()):
        whole.update(f"{name} {len(content)}\n".encode() + content)
    return whole.hexdigest()


def _package(files: Mapping[str, bytes]) -> str:
    # Models with different code can be loaded side by side, as each has modules of its own.
    return f"fashion_served_{digest(files)[:12]}"


def is_ours(folder: Path, flavor: Mapping[str, Any]) -> bool:
    """Return whether the code that a model brings along is this project's, and all of it.

    It is that of this checkout or of a released version, byte for byte: these can do no more than
    this project itself. Whoever reviews a change of the code reviews what models will run.

    Args:
        folder: of the model.
        flavor: its description of the flavour python_function.
    """
    root = folder / CODE
    found = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if not path.is_dir()
    }
    package = str(flavor.get("loader_module")).removesuffix(".served")
    files = {name.removeprefix(f"{package}/"): content for name, content in found.items()}
    return (
        flavor.get("code") == CODE
        and all(name.startswith(f"{package}/") for name in found)
        and package == _package(files)
        and flavor.get("loader_module") == f"{package}.served"
        and digest(files) in RELEASED | {digest(code())}
    )
