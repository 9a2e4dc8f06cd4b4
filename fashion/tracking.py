"""Train models as MLflow runs: the one module that knows MLflow's tracking API."""

import math
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow
import pandas as pd
import torch
from matplotlib.figure import Figure
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
)
from mlflow.models import infer_signature
from torch import nn

from fashion import data, engine, figures, models, report
from fashion.data import CLASSES, FashionMNIST, Subset
from fashion.engine import Evaluation
from fashion.errors import TrackingError
from fashion.models import Architecture
from fashion.recipe import Recipe

# The tag that tells a training run, and of which model, from the other runs of an experiment.
MODEL_TAG = "model"
MODEL_ARTIFACT = "model"
# What loading the logged model takes; inferring it would load the model in a second process.
PIP_REQUIREMENTS = [
    f"mlflow=={mlflow.__version__}",
    f"torch=={torch.__version__.split('+')[0]}",
]


@dataclass(frozen=True)
class Experiment:
    """One training run, as asked for.

    Attributes:
        model: its name.
        architecture: its options.
        val_size: number of training images held out for validation.
        device: "auto", "cpu", "cuda" or "mps".
        recipe: how to train it.
        preset: where settings come from that were not given.
        tta: whether to log accuracies with test-time augmentation too.
    """

    model: str
    architecture: Architecture
    val_size: int
    device: str
    recipe: Recipe
    preset: str = "lab"
    tta: bool = False


def connect() -> None:
    """Check that the tracking store answers, so that nothing is trained in vain.

    A database that does not exist yet is created.

    Raises:
        TrackingError: it does not answer, or refuses.
    """
    uri = mlflow.get_tracking_uri()
    try:
        with _single_attempt():
            mlflow.search_experiments(max_results=1)
    except Exception as error:  # every store raises errors of its own: requests', SQLAlchemy's, ...
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise TrackingError(
            f"the tracking store {_without_credentials(uri)} cannot be used"
            f" ({_without_credentials(reason)[:160]}): start it, or set MLFLOW_TRACKING_URI"
        ) from error


@contextmanager
def group(name: str, system_metrics: bool = False) -> Iterator[str]:
    """Open a parent run for the training runs of one comparison; yields its id."""
    with mlflow.start_run(run_name=name, log_system_metrics=system_metrics) as run:
        yield run.info.run_id


def train(
    experiment: Experiment,
    dataset: FashionMNIST,
    *,
    nested: bool = False,
    system_metrics: bool = False,
) -> str:
    """Train one model and log everything about it as one MLflow run.

    `mlflow run` has opened a run for its entry point: a train entry point continues that one.

    Args:
        experiment: what to train.
        dataset: the verified dataset.
        nested: make the run a child of the active one.
        system_metrics: sample CPU, memory and network while the run lasts.

    Returns:
        The id of the finished run.
    """
    device = engine.resolve_device(experiment.device)
    training, validation = dataset.split(experiment.val_size)
    model = models.build(experiment.model, experiment.recipe.seed, experiment.architecture)
    model.to(device)
    kernels = engine.resolve_kernels(experiment.recipe, model)
    with mlflow.start_run(
        run_name=experiment.model, nested=nested, log_system_metrics=system_metrics
    ) as run:
        mlflow.set_tag(MODEL_TAG, experiment.model)
        _log_params(run, experiment, model, device, kernels)
        _log_lineage(training, validation, dataset.test)

        history, kept, train_seconds = _fit(model, training, validation, experiment.recipe)
        speed = len(training) * len(history) / train_seconds
        # The test is of what is stored: the model on the CPU with PyTorch's kernels, where the
        # rounding of a GPU's or of our own is gone.
        model.to("cpu")
        test = engine.evaluate(model, dataset.test)
        calibration = report.calibration(dataset.test.labels, test.logits)
        logged = log_model(model, dataset.test, test)
        final = {
            "test_loss": test.loss,
            "test_accuracy": test.accuracy,
            "test_ece": report.expected_calibration_error(calibration),
            "train_seconds": train_seconds,
            "images_per_second": speed,
        }
        mlflow.log_metrics(final, model_id=logged.model_id)
        if experiment.tta:
            _log_tta(model, validation, dataset.test)
        pairs = _log_artifacts(experiment, history, dataset.test, test, calibration)
        note = _note(run.info.run_id, experiment, model, kept | final, pairs)
        mlflow.set_tag("mlflow.note.content", note)
    return run.info.run_id


def log_spread(run_ids: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Log mean and standard deviation of the runs' final metrics in the active run.

    The standard deviation is the sample's (n - 1).

    Returns:
        (mean, standard deviation) by metric.
    """
    finals = pd.DataFrame([mlflow.get_run(run_id).data.metrics for run_id in run_ids])
    spread = {str(name): (values.mean(), values.std()) for name, values in finals.items()}
    mlflow.log_metrics(
        {f"{name}_mean": mean for name, (mean, _) in spread.items()}
        | {f"{name}_std": std for name, (_, std) in spread.items()}
    )
    return spread


@contextmanager
def _active_or_new_run(name: str) -> Iterator[str]:
    active = mlflow.active_run()
    if active:
        yield active.info.run_id
    else:
        with mlflow.start_run(run_name=name) as run:
            yield run.info.run_id


def log_comparison(table: pd.DataFrame) -> str:
    """Log a table of `compare.runs` or `compare.groups` and its figure; return the run's id.

    The run is the active one, else the one that `mlflow run` opened, else a new one.
    """
    printable = table.astype(dict.fromkeys(table.select_dtypes("datetimetz").columns, str))
    with _active_or_new_run("comparison") as run_id:
        mlflow.log_table(printable, "comparison.json")
        mlflow.log_figure(figures.comparison(table), "comparison.png")
    return run_id


def log_exploration(table: str, drawn: Mapping[str, Figure]) -> str:
    """Log what `explore` made, its figures by file name; return the run's id.

    The run is the one that `mlflow run` opened, else a new one.
    """
    with _active_or_new_run("explore") as run_id:
        mlflow.log_text(table, "layers.txt")
        for name, figure in drawn.items():
            mlflow.log_figure(figure, name)
    return run_id


def _fit(
    model: nn.Module, training: Subset, validation: Subset | None, recipe: Recipe
) -> tuple[pd.DataFrame, dict[str, float], float]:
    """Train, logging each epoch.

    Returns:
        The metrics by epoch, those of the weights that were kept, and the seconds of training.
    """
    history: dict[int, dict[str, float]] = {}
    train_seconds = 0.0
    for epoch in engine.train(model, training, recipe, validation):
        train_seconds += epoch.seconds
        metrics = {"train_loss": epoch.loss, "train_accuracy": epoch.accuracy}
        if epoch.validation is not None:
            metrics |= {
                "val_loss": epoch.validation.loss,
                "val_accuracy": epoch.validation.accuracy,
            }
        mlflow.log_metrics(metrics, step=epoch.number)
        history[epoch.number] = metrics
        print(_progress(epoch.number, recipe.epochs, metrics, epoch.seconds), flush=True)
    table = pd.DataFrame.from_dict(history, orient="index")
    kept = last = len(history)
    if recipe.patience:
        kept = int(table["val_loss"].fillna(math.inf).argmin()) + 1
        # What a run says of itself is what it logged last: that of the weights it kept.
        mlflow.log_metrics({**history[kept], "best_epoch": kept}, step=last)
    return table, history[kept], train_seconds


def _log_tta(model: nn.Module, validation: Subset | None, test: Subset) -> None:
    for name, subset in (("val", validation), ("test", test)):
        if subset is not None:
            answers = engine.evaluate(model, subset, tta=True)
            mlflow.log_metrics(
                {f"{name}_accuracy_tta": answers.accuracy, f"{name}_loss_tta": answers.loss}
            )


def _progress(number: int, epochs: int, metrics: Mapping[str, float], seconds: float) -> str:
    line = (
        f"epoch {number}/{epochs}: train loss {metrics['train_loss']:.4f},"
        f" accuracy {metrics['train_accuracy']:.2%}"
    )
    if "val_loss" in metrics:
        line += f"; val loss {metrics['val_loss']:.4f}, accuracy {metrics['val_accuracy']:.2%}"
    return f"{line} ({seconds:.1f} s)"


def _log_params(
    run: mlflow.ActiveRun,
    experiment: Experiment,
    model: nn.Module,
    device: torch.device,
    kernels: str,
) -> None:
    params = {
        "model": experiment.model,
        "preset": experiment.preset,
        "tta": experiment.tta,
        **models.options_of(experiment.model, experiment.architecture),
        **asdict(experiment.recipe),
        "augment": ",".join(experiment.recipe.augment),
        "val_size": experiment.val_size,
        "split_seed": data.SPLIT_SEED,
        "device": experiment.device,
        "device_name": (
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        ),
        "kernels_used": kernels,
        "threads": torch.get_num_threads(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
        "num_parameters": models.count_parameters(model),
    }
    # `mlflow run` has logged the parameters of the entry point as they were typed. A parameter
    # cannot be logged again in another spelling (1e-1 for 0.1): mlflow/mlflow#3536.
    mlflow.log_params({key: params[key] for key in params.keys() - run.data.params.keys()})


def _log_lineage(training: Subset, validation: Subset | None, test: Subset) -> None:
    subsets = {"training": training, "validation": validation, "test": test}
    present = {context: subset for context, subset in subsets.items() if subset is not None}
    source = HTTPDatasetSource(data.HOMEPAGE)
    mlflow.log_inputs(
        datasets=[
            MetaDataset(source, name=subset.name, digest=subset.digest)  # type: ignore[abstract]
            for subset in present.values()
        ],
        contexts=list(present),
        tags_list=[{"images": str(len(subset))} for subset in present.values()],
    )


def log_model(
    model: nn.Module, subset: Subset, answers: Evaluation
) -> mlflow.models.model.ModelInfo:
    """Log the model in the active run as a pt2 archive: no pickle, none of our code to load it.

    Args:
        model: in evaluation mode, on the CPU.
        subset: images, of which the first ones are the input example.
        answers: the model's answers on `subset`.
    """
    # A batch of two keeps the batch dimension dynamic: torch.export fixes a dimension of size 1.
    images = data.to_float(subset.images[:2]).numpy()
    return mlflow.pytorch.log_model(
        model,
        name=MODEL_ARTIFACT,
        signature=infer_signature(images, answers.logits[:2].numpy()),
        input_example=images,
        pip_requirements=PIP_REQUIREMENTS,
        serialization_format="pt2",
    )


def _log_artifacts(
    experiment: Experiment,
    history: pd.DataFrame,
    subset: Subset,
    test: Evaluation,
    calibration: pd.DataFrame,
) -> list[report.ConfusedPair]:
    """Log tables and figures of the test predictions; return the most confused pairs."""
    predicted = test.logits.argmax(dim=1)
    confusion = report.confusion_matrix(subset.labels, predicted)
    pairs = report.confused_pairs(confusion)
    title = f"{experiment.model}: {test.accuracy:.2%} of {len(subset):,} test images"

    mlflow.log_table(report.per_class(subset.labels, predicted), "per_class.json")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        confusion.to_csv(root / "confusion_matrix.csv")
        (root / "confused_pairs.txt").write_text("".join(f"{pair}\n" for pair in pairs))
        figures.confusion_matrix(confusion, title).savefig(root / "confusion_matrix.png")
        figures.learning_curves(history, experiment.model).savefig(root / "learning_curves.png")
        if test.logits.isfinite().all():  # a diverged model is sure of nothing
            figures.reliability_diagram(calibration, title).savefig(root / "reliability.png")
            figures.precision_recall_curves(subset.labels, test.logits, title).savefig(
                root / "precision_recall.png"
            )
        rows = torch.randperm(
            len(subset), generator=torch.Generator().manual_seed(experiment.recipe.seed)
        )[:9]
        _grid(subset, rows, test, title).savefig(root / "predictions.png")
        wrong = report.most_confidently_wrong(subset.labels, test.logits)
        if len(wrong):
            title = f"{experiment.model}: the mistakes it was surest of"
            _grid(subset, wrong, test, title).savefig(root / "confidently_wrong.png")
        mlflow.log_artifacts(folder)
    return pairs


def _grid(subset: Subset, rows: torch.Tensor, answers: Evaluation, title: str) -> Figure:
    """Draw the images of `rows` with what the model made of them, and how sure it was."""
    confidence, predicted = answers.logits[rows].softmax(dim=1).max(dim=1)
    return figures.prediction_grid(
        subset.images[rows],
        predicted=[CLASSES[index] for index in predicted],
        true=[CLASSES[index] for index in subset.labels[rows]],
        title=title,
        confidence=confidence.tolist(),
    )


def _note(
    run_id: str,
    experiment: Experiment,
    model: nn.Module,
    metrics: Mapping[str, float],
    pairs: list[report.ConfusedPair],
) -> str:
    """Sum the run up in Markdown."""
    recipe = experiment.recipe
    splits = [split for split in ("train", "val", "test") if f"{split}_loss" in metrics]
    rows = [
        f"| {split} | {metrics[f'{split}_loss']:.4f} | {metrics[f'{split}_accuracy']:.2%} |"
        for split in splits
    ]
    # The UI breaks a line wherever the text does. It serves the run's artifacts under get-artifact.
    picture = f"get-artifact?path=confusion_matrix.png&run_uuid={run_id}"
    return "\n".join(
        [
            f"### {experiment.model}: {metrics['test_accuracy']:.2%} test accuracy",
            "",
            f"{models.count_parameters(model):,} parameters, {recipe.epochs} epochs of"
            f" {recipe.optimizer} (lr {recipe.lr:g}, batch {recipe.batch_size},"
            f" seed {recipe.seed}): {metrics['train_seconds']:.1f} s of training,"
            f" {metrics['images_per_second']:,.0f} images/s.",
            "",
            "| split | loss | accuracy |",
            "| --- | --- | --- |",
            *rows,
            "",
            "Most confused on the test set:",
            "",
            *(f"- {pair}" for pair in pairs[:5]),
            "",
            f"![Confusion matrix]({picture})",
            "",
        ]
    )


def _without_credentials(text: str) -> str:
    return re.sub(r"://[^/@\s]+@", "://***@", text)


@contextmanager
def _single_attempt() -> Iterator[None]:
    """Make MLflow's HTTP client answer at once instead of retrying for minutes."""
    limits = {MLFLOW_HTTP_REQUEST_MAX_RETRIES.name: "0", MLFLOW_HTTP_REQUEST_TIMEOUT.name: "10"}
    saved = {name: os.environ.get(name) for name in limits}
    os.environ.update(limits)
    try:
        yield
    finally:
        for name, value in saved.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
