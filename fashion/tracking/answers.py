"""Find a model's predictions: those that its run has kept, else what it answers now."""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fashion.analysis import predictions
from fashion.analysis.predictions import Predictions
from fashion.data.dataset import FashionMNIST, Subset
from fashion.errors import DataError, FashionError, SettingError
from fashion.inference import classifier
from fashion.tracking import models, query, versions
from fashion.tracking.store import environment
from fashion.training import evaluation

SPLITS = ("validation", "test")
ON_TEST = "compare on the test images (split=test)"


class AnswersError(FashionError):
    """Two models cannot be compared on the same images."""


@dataclass(frozen=True)
class Source:
    """A model, and the images to compare it on.

    Attributes:
        name: what to call it.
        uri: URI of the model.
        run: the training run that logged it; None if no run of this project is known to.
        subset: the images.
    """

    name: str
    uri: str
    run: Run | None
    subset: Subset


def find(text: str, split: str, dataset: FashionMNIST) -> Source:
    """Find a model and its images.

    Args:
        text: the id of a run, or its first 8 or more characters, or the URI of a model.
        split: one of `SPLITS`.
        dataset: the verified dataset.

    Raises:
        AnswersError: it is not known which images the model was validated on.
        CompareError, RegistryError: as for `query.model_uri`.
    """
    uri = query.model_uri(text)
    run = _run_of(uri)
    name = text
    if run is not None and uri != text:
        name = f"{run.info.run_name} ({run.info.run_id[:8]})"
    if split == "test":
        return Source(name, uri, run, dataset.test)
    if run is None:
        # It may have been trained on images that are held out here.
        raise AnswersError(
            f"{text} is no model of a training run, so it is not known what it was trained on:"
            f" {ON_TEST}"
        )
    try:
        validation = dataset.split(int(run.data.params.get("val_size", "")))[1]
    except (ValueError, SettingError):  # logged by something else
        validation = None
    if validation is None:
        raise AnswersError(f"{text} was trained without validation images: {ON_TEST}")
    return Source(name, uri, run, validation)


def same_images(a: Source, b: Source) -> Subset:
    """Return the images of both.

    Raises:
        AnswersError: they have others.
    """
    if a.subset.digest != b.subset.digest:
        raise AnswersError(
            f"{a.name} was validated on {len(a.subset):,} images, {b.name} on {len(b.subset):,}"
            f" others: {ON_TEST}"
        )
    return a.subset


def answers(source: Source, split: str) -> Predictions:
    """Return the predictions on the images of `source`; the model runs only if none are kept.

    Raises:
        RegistryError: the model cannot be loaded.
        ForeignModelError: it does not classify images of Fashion-MNIST.
    """
    kept = _kept(source.run).get(split) if source.run else None
    if kept is not None and (kept.digest, len(kept)) == (source.subset.digest, len(source.subset)):
        return kept
    model = models.load(source.uri)
    classifier.check(model, source.name)
    return predictions.of(source.subset, evaluation.evaluate(model, source.subset))


def _run_of(uri: str) -> Run | None:
    """Return the run that logged this very model, if it is known."""
    client = MlflowClient()
    if match := re.fullmatch(r"models:/(m-[^/@]+)", uri):
        source, run_id = uri, _logged_by(match[1])
    elif match := re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", uri):
        found = (
            versions.by_alias(client, match[1], match[2])
            if match[2]
            else next((v for v in versions.all_of(client, match[1]) if v.number == match[3]), None)
        )
        source, run_id = (found.source, found.run_id) if found else ("", "")
    else:
        return None
    try:
        run = client.get_run(run_id) if run_id else None
        return run if run is not None and models.model_uri(run) == source else None
    except (MlflowException, FashionError):  # the run was deleted, or logged no model
        return None


def _logged_by(model_id: str) -> str:
    try:
        return mlflow.get_logged_model(model_id).source_run_id or ""
    except MlflowException:
        return ""


def _kept(run: Run) -> dict[str, Predictions]:
    """Return the predictions that a run has kept by split; none if it has no readable file."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with environment({"MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}):
                path = mlflow.artifacts.download_artifacts(
                    run_id=run.info.run_id, artifact_path=predictions.FILE, dst_path=folder
                )
            return predictions.read(Path(path))
        except (MlflowException, DataError, OSError):
            return {}
