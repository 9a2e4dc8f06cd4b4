"""Find a model and its predictions: those that its run has kept, else what it answers now."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fashion.analysis import predictions
from fashion.analysis.predictions import Predictions
from fashion.data.dataset import Dataset, Subset
from fashion.errors import DataError, FashionError, SettingError
from fashion.inference import classifier
from fashion.tracking import archive, models, query, versions
from fashion.tracking.store import without_progress_bar
from fashion.training import evaluation


class AnswersError(FashionError):
    """Two models cannot be compared on the same images."""


@dataclass(frozen=True)
class Source:
    """Where a model is.

    Attributes:
        name: what to call it.
        uri: URI of the model.
        model_id: id of the logged model; empty if the tracking store has none.
        run: the training run that logged it; None if none of this project is known to.
    """

    name: str
    uri: str
    model_id: str = ""
    run: Run | None = None


@dataclass(frozen=True)
class Answers:
    """A model's predictions, and the images that they are of.

    Attributes:
        subset: the images.
        predictions: the predictions.
    """

    subset: Subset
    predictions: Predictions


def find(text: str) -> Source:
    """Find a model. An alias becomes the version that has it now.

    Args:
        text: the id of a run, or its first 8 or more characters, or the URI of a model.

    Raises:
        CompareError, RegistryError: as for `query.model_uri`.
    """
    uri = query.model_uri(text)
    try:
        return _found(text, uri)
    except MlflowException:  # loading it says what is wrong
        return Source(text, uri)


def _found(text: str, uri: str) -> Source:
    client, name = MlflowClient(), text
    if match := re.fullmatch(r"models:/(m-[^/@]+)", uri):
        logged = match[1]
    elif match := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri):
        registered, alias, number = match.groups()
        if alias:
            version = versions.by_alias(client, registered, alias)
        else:
            known = versions.all_of(client, registered)
            version = next((each for each in known if each.number == number), None)
        if version is None:
            return Source(text, uri)
        uri = f"models:/{registered}/{version.number}"
        name = f"{registered} version {version.number}{f' ({alias})' if alias else ''}"
        logged = version.source.removeprefix("models:/")
    elif match := re.fullmatch(r"runs:/([0-9a-f]{32})/(.+)", uri):
        logged = _id(client.get_run(match[1]))
        if mlflow.get_logged_model(logged).name != match[2]:
            return Source(text, uri)
    else:
        return Source(text, uri)
    try:
        run_id = mlflow.get_logged_model(logged).source_run_id
    except MlflowException:  # it was deleted, or is none of this store
        return Source(name, uri)
    run = _training_run(run_id or "", logged)
    if run is not None and name == text:
        name = f"{run.info.run_name} ({run.info.run_id[:8]})"
    return Source(name, uri, logged, run)


def on(source: Source, dataset: Dataset) -> dict[str, Answers]:
    """Return a model's answers to the test images and, if it is known, its validation images.

    The model runs only if its run has not kept its predictions.

    Raises:
        AnswersError: its run has tested it on other images.
        RegistryError: the model cannot be loaded.
        ForeignModelError: it classifies something else than the data.
    """
    task = archive.task_of(source.uri)
    classifier.check_data(source.name, task, dataset.task)
    subsets = {"validation": _validation(source.run, dataset), "test": dataset.test}
    kept = _kept(source.run) if source.run else {}
    if "test" in kept and kept["test"].digest != dataset.test.digest:
        raise AnswersError(f"{source.name} was tested on other images than those of this dataset")
    asked = {split: subset for split, subset in subsets.items() if subset is not None}
    missing = [
        split
        for split, subset in asked.items()
        if split not in kept or kept[split].digest != subset.digest
    ]
    answered = {split: kept[split] for split in asked if split not in missing}
    if missing:
        model = models.load(source.uri)
        classifier.check(model, source.name, task)
        for split in missing:
            subset = asked[split]
            answered[split] = predictions.of(subset, evaluation.evaluate(model, subset))
    return {split: Answers(subset, answered[split]) for split, subset in asked.items()}


def _validation(run: Run | None, dataset: Dataset) -> Subset | None:
    """Return the images that a run was validated on.

    None of a model of no known run: it may have been trained on images that are held out here.
    """
    try:
        return dataset.split(int(run.data.params.get("val_size", "")))[1] if run else None
    except (ValueError, SettingError):  # logged by something else
        return None


def _training_run(run_id: str, model_id: str) -> Run | None:
    """Return a run if this model is the one that it logged."""
    try:
        run = MlflowClient().get_run(run_id)
        return run if _id(run) == model_id else None
    except (MlflowException, FashionError):  # it was deleted, or logged no model
        return None


def _id(run: Run) -> str:
    return models.model_uri(run).removeprefix("models:/")


def _kept(run: Run) -> Mapping[str, Predictions]:
    """Return the predictions that a run has kept by split; none if it has no readable file."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with without_progress_bar():
                path = mlflow.artifacts.download_artifacts(
                    run_id=run.info.run_id, artifact_path=predictions.FILE, dst_path=folder
                )
            return predictions.read(Path(path))
        except (MlflowException, DataError, OSError):
            return {}
