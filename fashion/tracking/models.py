"""Log models to MLflow, and load them."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import PIL
import torch
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Run
from mlflow.exceptions import MlflowException
from mlflow.models import Model, infer_signature
from torch import nn

from fashion.data.dataset import Subset, to_float
from fashion.errors import RegistryError
from fashion.models import catalogue
from fashion.settings.experiment import Architecture
from fashion.settings.option import read
from fashion.settings.task import Task
from fashion.tracking import archive, faces
from fashion.training.evaluation import Evaluation

# Given explicitly, because MLflow would load the model in a second process to infer them.
PIP_REQUIREMENTS = [
    f"mlflow=={mlflow.__version__}",
    f"pillow=={PIL.__version__}",
    f"torch=={torch.__version__.split('+')[0]}",
]


def log_model(
    run: Run,
    title: str,
    model: nn.Module,
    subset: Subset,
    answers: Evaluation,
    temperature: float = 1.0,
) -> str:
    """Log the run's model with both its `faces`, which load without pickle and this project.

    A model that an interrupted attempt has partly logged is completed, so that a run has one model.

    Args:
        run: the active run.
        title: what the UI calls the model.
        model: in evaluation mode, on the CPU.
        subset: images, the first of which become the input example.
        answers: the model's predictions on `subset`.
        temperature: what its logits are divided by before the softmax.

    Returns:
        The logged model's id.
    """
    begun = _begun_model(run)
    if begun is not None and begun.status == LoggedModelStatus.READY:
        return begun.model_id
    # A batch of two keeps the batch dimension dynamic: torch.export fixes a dimension of size 1.
    images = to_float(subset.take(torch.arange(2))).numpy()
    options: dict[str, Any] = {
        "model": model,
        "temperature": temperature,
        "task": subset.task,
        "signature": infer_signature(images, answers.logits[:2].numpy()),
        "input_example": images,
        "pip_requirements": PIP_REQUIREMENTS,
        "serialization_format": "pt2",
    }
    if begun is None:
        # Without the validation, which would load the model into this process.
        info = Model.log(None, faces, name=_allowed(title), validate_serving_input=False, **options)
        return info.model_id
    _complete_model(run, begun, options)
    return begun.model_id


def _allowed(title: str) -> str:
    """Replace characters that MLflow does not allow in the name of a model."""
    return re.sub(r"""[/:.%"']""", "_", title)


def _begun_model(run: Run) -> LoggedModel | None:
    """Return the model that an earlier attempt has logged completely or partly, if any."""
    found = MlflowClient().search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'", max_results=1
    )
    return found[0] if found else None


def _complete_model(run: Run, begun: LoggedModel, options: Mapping[str, Any]) -> None:
    """Complete a partly logged model.

    MLflow's log_model would fail, because the model may already be an output of the run.
    """
    client, run_id, model_id = MlflowClient(), run.info.run_id, begun.model_id
    outputs = client.get_run(run_id).outputs
    if model_id not in {output.model_id for output in (outputs.model_outputs if outputs else ())}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])
    described = Model(begun.artifact_location, run_id, model_uuid=model_id, model_id=model_id)
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "model"))
        faces.save_model(path, described, **options)
        client.log_model_artifacts(model_id, path)
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)


def model_uri(run: Run) -> str:
    """Return the URI of the model that `run` logged.

    Raises:
        RegistryError: the run logged no model.
    """
    outputs = run.outputs.model_outputs if run.outputs else []
    if not outputs:
        raise RegistryError(f"run {run.info.run_id} has logged no model")
    return f"models:/{outputs[-1].model_id}"


class Calibrated(NamedTuple):
    """A model, and what its logits mean.

    Attributes:
        model: maps images to logits; ready to predict on the CPU.
        temperature: what the logits are divided by before the softmax.
        task: what it classifies.
    """

    model: nn.Module
    temperature: float
    task: Task


def load(uri: str) -> nn.Module:
    """Return the model of `load_calibrated`."""
    return load_calibrated(uri).model


def load_calibrated(uri: str) -> Calibrated:
    """Load a model from the tracking store or the registry, ready to predict on the CPU.

    Args:
        uri: for example models:/fashion-mnist-cnn@champion, or models:/m-... for a run's model.

    Raises:
        RegistryError: the model does not exist, is damaged or incomplete, is pickled, or brings
            code of others along.
    """
    with archive.fetched(uri) as stored:
        return Calibrated(stored.load(), stored.temperature, stored.task)


def rebuild(uri: str) -> nn.Module:
    """Build a logged model from its class in `fashion.models`, with the weights stored at `uri`.

    `load` returns a traced graph, which does not have the original layers.

    Returns:
        The model in evaluation mode, on the CPU; it gives the same logits as the stored one.

    Raises:
        RegistryError: the model does not exist, was not logged by a training run of this project,
            or its class in `fashion.models` has changed since.
    """
    with archive.fetched(uri) as files:
        stored, run_id, task = files.load(), files.run_id, files.task
    try:
        params = mlflow.get_run(run_id).data.params if run_id else {}
        # The stored weights are loaded below, not those that training started from.
        architecture = replace(read(Architecture, params), pretrained="")
        model = catalogue.build(params["model"], 0, architecture, task).eval()
    except (MlflowException, KeyError, ValueError) as error:  # SettingError is a ValueError
        raise RegistryError(
            f"{uri} was not logged by a training run of a model in fashion/models"
        ) from error
    changed = f"{params['model']} in fashion/models has changed since {uri} was logged"
    try:
        model.load_state_dict(stored.state_dict())
    except RuntimeError as error:
        raise RegistryError(f"{changed}: its weights do not fit") from error
    images = torch.rand(2, *task.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        rebuilt, expected = model(images), stored(images)
    # Models that diverged give NaN, and can be explored too.
    if not torch.allclose(rebuilt, expected, rtol=1e-4, atol=1e-4, equal_nan=True):
        raise RegistryError(f"{changed}: it gives different logits")
    return model
