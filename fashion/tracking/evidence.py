"""Measure a run's stored model, and record what was measured in tags of its version."""

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_GIT_COMMIT
from torch import Tensor

from fashion.data.dataset import Dataset, Subset
from fashion.errors import RegistryError, SettingError
from fashion.settings.metrics import SELECTING_METRICS
from fashion.tracking import archive
from fashion.tracking.store import reason
from fashion.training.evaluation import Evaluation, evaluate

# How far the logits of one model may lie apart, relative to the largest of them. Another processor
# sums float32 in a different order. GPUs round the factors of convolutions to 10 bits (TF32); only
# validation metrics are logged from there, as a run is tested on the CPU.
ROUNDING = 1e-4
GPU_ROUNDING = 1e-2

# Tag with a checksum of the tags below: after a change by hand it does not match.
CHECKSUM = "measured_checksum"
MEASURED = (
    "run_id",
    "model_digest",
    "validation_digest",
    "validation_images",
    "test_digest",
    # Those that all versions have; the others count where they were measured.
    *("val_accuracy", "val_loss", "test_accuracy", "test_loss"),
)
# Tags with the images that were classified correctly, written by `packed`. Versions that an earlier
# version of this project has measured lack them, and their checksum is without them.
VALIDATION_RIGHT = "validation_right"
TEST_RIGHT = "test_right"


# Measured tags that a person reads. The others become one tag, as MLflow's table of versions shows
# all tags.
SHOWN = ("val_accuracy", "test_accuracy")
EVIDENCE = "evidence"


@dataclass(frozen=True)
class Measurement:
    """What a stored model gives on the images of its run.

    Attributes:
        tags: for the version, with a checksum: digests of the model and of the images, the measured
            metrics, and which images were classified correctly.
        test: the predictions on the test set.
    """

    tags: Mapping[str, str]
    test: Evaluation

    @property
    def metrics(self) -> dict[str, float]:
        """The measured metrics by name."""
        return {name: float(self.tags[name]) for name in SELECTING_METRICS if name in self.tags}


def measure(run: Run, uri: str, dataset: Dataset, source: str | None = None) -> Measurement:
    """Evaluate the model at `uri` on the run's validation images and on the test set.

    Args:
        run: the training run that logged the model.
        uri: where the model is.
        dataset: the verified dataset.
        source: source of the model's version; by default `uri`.

    Raises:
        RegistryError: the model cannot be loaded or fails, the run was measured on other images, or
            its logged metrics differ by more than rounding.
    """
    subsets = _subsets(run, dataset)
    try:
        with archive.fetched(uri) as stored:
            model, model_digest = stored.load(), stored.digest()
    except RegistryError as error:
        raise RegistryError(f"run {run.info.run_id}: {error}") from error
    tags = {"run_id": run.info.run_id, "model_digest": model_digest}
    if MLFLOW_GIT_COMMIT in run.data.tags:
        tags["git_commit"] = run.data.tags[MLFLOW_GIT_COMMIT]
    tags |= {f"{context}_digest": digest for context, digest in _digests(run).items()}
    for context, subset in subsets.items():
        try:
            answers = evaluate(model, subset)
        except Exception as error:  # a model for other images may raise anything
            raise RegistryError(
                f"the stored model of run {run.info.run_id} fails on the {context} images"
                f" ({reason(error)})"
            ) from error
        on_gpu = context == "validation" and run.data.params.get("device_type", "cpu") != "cpu"
        prefix = "val" if context == "validation" else context
        tags |= _reproduced(run, prefix, answers, subset, GPU_ROUNDING if on_gpu else ROUNDING)
        right = answers.logits.argmax(dim=1) == subset.labels
        if context == "validation":
            tags |= {"validation_images": str(len(subset)), VALIDATION_RIGHT: packed(right)}
        else:
            tags[TEST_RIGHT] = packed(right)
    return Measurement(signed(tags, source or uri), answers)


def signed(tags: Mapping[str, str], source: str) -> dict[str, str]:
    """Return the tags of a measurement with their checksum, for the version with this source."""
    return {**tags, CHECKSUM: _checksum(tags, source)}


def is_measured(tags: Mapping[str, str], source: str) -> bool:
    """Return whether the tags of a version with this source are those of a measurement."""
    return tags.get(CHECKSUM) == _checksum(tags, source)


def _checksum(tags: Mapping[str, str], source: str) -> str:
    measured = [source, *(tags.get(name) for name in MEASURED)]
    later = (name for name in SELECTING_METRICS if name not in MEASURED)
    measured += [tags[name] for name in (*later, VALIDATION_RIGHT, TEST_RIGHT) if name in tags]
    return hashlib.sha256(json.dumps(measured).encode()).hexdigest()


def to_registry(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a measurement as a version stores them; `from_registry` reads them.

    The checksum is in the last one: until that is set, the version counts as unverified.
    """
    shown = {name: tags[name] for name in SHOWN if name in tags}
    return shown | {EVIDENCE: json.dumps({k: v for k, v in tags.items() if k not in SHOWN})}


def from_registry(tags: Mapping[str, str]) -> dict[str, str]:
    """Return all tags of a version, those of its measurement one by one.

    Earlier versions of this project stored them so.
    """
    others = {name: value for name, value in tags.items() if name != EVIDENCE}
    try:
        measured = json.loads(tags.get(EVIDENCE, "{}"))
    except ValueError:  # changed by hand
        return others
    if not isinstance(measured, dict):
        return others
    return others | {k: v for k, v in measured.items() if isinstance(v, str) and k not in SHOWN}


def packed(right: Tensor) -> str:
    """Return which images were classified correctly as text: a compressed bit for each.

    Args:
        right: bool, shape (N,).
    """
    bits = np.packbits(right.numpy()).tobytes()
    return f"{len(right)}:{base64.b64encode(zlib.compress(bits, 9)).decode()}"


def unpacked(text: str) -> Tensor:
    """Return what `packed` was given."""
    size, _, content = text.partition(":")
    bits = np.frombuffer(zlib.decompress(base64.b64decode(content)), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(bits, count=int(size))).bool()


def _digests(run: Run) -> dict[str, str]:
    """Return the digests of the images that a run has logged: {"training": ..., "test": ...}."""
    return {
        tag.value: logged.dataset.digest
        for logged in (run.inputs.dataset_inputs if run.inputs else [])
        for tag in logged.tags
        if tag.key == MLFLOW_DATASET_CONTEXT
    }


def _subsets(run: Run, dataset: Dataset) -> dict[str, Subset]:
    """Return the images that the run was measured on, with the test images last.

    Raises:
        RegistryError: the run logged the digests of others.
    """
    try:
        validation = dataset.split(int(run.data.params.get("val_size", "")))[1]
    except (ValueError, SettingError):  # logged by something else
        validation = None
    subsets = {"validation": validation} if validation is not None else {}
    subsets["test"] = dataset.test
    logged = _digests(run)
    for context, subset in subsets.items():
        if logged.get(context) != subset.digest:
            raise RegistryError(
                f"run {run.info.run_id} was not measured on the {context} images of this dataset"
            )
    return subsets


def _reproduced(
    run: Run, prefix: str, answers: Evaluation, subset: Subset, rounding: float
) -> dict[str, str]:
    """Return the measured metrics as tags.

    The loss may differ from the run's by `rounding`, and the others by `undecided` images.

    Raises:
        RegistryError: loss or accuracy differ by more, or the run did not log them.
    """
    loss, accuracy = f"{prefix}_loss", f"{prefix}_accuracy"
    measured = answers.metrics(prefix)
    flipped = undecided(answers.logits, subset.labels, rounding)
    # One image of the smallest class weighs most in the mean over the classes, and changes two.
    smallest = int(torch.bincount(subset.labels).clamp(min=1).min())
    allowed = dict.fromkeys(measured, 2 * flipped / smallest) | {
        loss: rounding * max(1.0, answers.loss),
        accuracy: flipped / len(subset),
    }
    for metric, value in measured.items():
        # Earlier versions of this project logged these two alone.
        if metric not in run.data.metrics and metric not in (loss, accuracy):
            continue
        logged = run.data.metrics.get(metric)
        # Not "difference > allowed", which is false for NaN.
        if logged is None or not abs(value - logged) <= allowed[metric] + 1e-12:
            raise RegistryError(
                f"the stored model of run {run.info.run_id} gives {metric} {value:.6f}, but the"
                f" run logged {'none' if logged is None else f'{logged:.6f}'}"
            )
    return {metric: repr(value) for metric, value in measured.items()}


def undecided(logits: Tensor, labels: Tensor, rounding: float) -> int:
    """Return how many images may be right on one processor and wrong on another.

    Rounding decides where the logits of an image's class and of the best other class are nearly
    equal. Such images are rare once a model has learned something, so at most one of them counts,
    or the fraction `rounding` of all images: a model that answers the same to everything is no
    reason to accept every accuracy.

    Args:
        logits: float32, shape (N, classes).
        labels: int64, shape (N,).
        rounding: difference of two nearly equal logits, relative to the largest of all.
    """
    own = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), -math.inf).max(dim=1).values
    near = int(((own - others).abs() <= rounding * logits.abs().max()).sum())
    return min(near, max(1, int(rounding * len(labels))))
