"""Log parameters, datasets, tables and figures to MLflow runs."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
import torch
from mlflow import MlflowClient
from mlflow.data.dataset_source import DatasetSource
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.numpy_dataset import NumpyDataset
from mlflow.entities import LoggedModelInput, Run
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from PIL import Image

from fashion.analysis import markdown, reproduction, tables
from fashion.analysis.drawing import Drawing, drawn
from fashion.analysis.pictures import to_compare
from fashion.analysis.report import Report, note, write_files
from fashion.analysis.reproduction import Reproduction
from fashion.data.dataset import Subset
from fashion.errors import printable
from fashion.settings.tags import REPRODUCED_TAG
from fashion.tracking import runs
from fashion.training.evaluation import Evaluation

if TYPE_CHECKING:  # a training does not import matplotlib
    from matplotlib.figure import Figure

    from fashion.analysis.difference import Difference

PER_CLASS_ARTIFACT = "per_class.json"
# How often to log the images that other processes log at the same time.
ATTEMPTS = 5


def log_epochs(epochs: Sequence[Mapping[str, Any]], logged: int) -> int:
    """Log the metrics of all epochs after the first `logged`; return the number of epochs.

    Each has "metrics" and a "timestamp". MLflow stores a metric only once for the same step, value
    and timestamp.
    """
    for number, epoch in enumerate(epochs[logged:], logged + 1):
        mlflow.log_metrics(epoch["metrics"], step=number, timestamp=epoch["timestamp"])
    return len(epochs)


def log_spread(run_ids: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Log mean and standard deviation of the runs' final metrics to the active run.

    The standard deviation is the sample's (n - 1). Both are NaN if a run lacks the metric or
    diverged; without that run they would be too optimistic.

    Returns:
        {metric: (mean, standard deviation)}.
    """
    finals = pd.DataFrame([mlflow.get_run(run_id).data.metrics for run_id in run_ids])
    spread = {
        str(name): (values.mean(skipna=False), values.std(skipna=False))
        for name, values in finals.items()
    }
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
        with runs.running(name=name) as run:
            yield run.info.run_id


def log_comparison(table: pd.DataFrame) -> str:
    """Log a table of `query.runs` or `query.groups` and its figure; return the run's id.

    Uses the active run, else the one that `mlflow run` created, else a new one.
    """
    printable = table.astype(dict.fromkeys(table.select_dtypes("datetimetz").columns, str))
    with _active_or_new_run("comparison") as run_id, tempfile.TemporaryDirectory() as folder:
        figure = Path(folder, "comparison.png")
        with drawn([Drawing(figure, "comparison", (table,))]):
            mlflow.log_table(printable, "comparison.json")
        mlflow.log_artifact(str(figure))
    return run_id


def log_exploration(table: str, figures: "Mapping[str, Figure]") -> str:
    """Log the table and the figures (by file name) of `explore`; return the run's id.

    Uses the active run, else the one that `mlflow run` created, else a new one.
    """
    with _active_or_new_run("explore") as run_id:
        mlflow.log_text(table, "layers.txt")
        for name, figure in figures.items():
            mlflow.log_figure(figure, name)
    return run_id


def log_differences(
    found: "Sequence[Difference]", subsets: Sequence[Subset], model_ids: Sequence[str]
) -> str:
    """Log comparisons of the same two models; return the run's id.

    Uses the active run, else the one that `mlflow run` created, else a new one.

    Args:
        found: the comparisons.
        subsets: the images of each.
        model_ids: ids of the logged models; those that are empty are left out.
    """
    from fashion.analysis import difference

    with (
        _active_or_new_run(f"diff: {printable(' / '.join(found[0].names))}") as run_id,
        tempfile.TemporaryDirectory() as folder,
    ):
        _log_images(dict(zip((each.split for each in found), subsets, strict=True)))
        _link_models(run_id, model_ids)
        pictures = {}
        for each, subset in zip(found, subsets, strict=True):
            difference.write_files(Path(folder), each, subset)
            mlflow.log_metrics(each.metrics)
            if Path(folder, each.picture).exists():
                title = f"Changed {each.split} images"
                pictures[each.picture] = markdown.picture(run_id, title, each.picture)
        mlflow.log_artifacts(folder)
        mlflow.set_tag(MLFLOW_RUN_NOTE, difference.note(found, pictures))
    return run_id


def log_report(report: Report, model_id: str, files: Sequence[Path], folder: str) -> str:
    """Log the evaluation of a model; return the run's id.

    Uses the active run, else the one that `mlflow run` created, else a new one.

    Args:
        report: the evaluation.
        model_id: id of the logged model; empty if the tracking store has none.
        files: files of the images; empty for images of the dataset.
        folder: folder of these files.
    """
    with (
        _active_or_new_run(f"evaluate: {printable(report.name)}") as run_id,
        tempfile.TemporaryDirectory() as written,
    ):
        images = dataset_of(report.subset, str(Path(folder).absolute()) if files else "")
        mlflow.log_input(images, report.kind, tags={"images": str(len(report.subset))})
        mlflow.log_metrics(report.metrics, model_id=model_id or None, dataset=images)
        write_files(Path(written), report, files)
        mlflow.log_artifacts(written)
        run = mlflow.get_run(run_id)
        log_pictures(run, to_compare(Path(written)))
        log_per_class(run, report.subset, report.answers)
        mlflow.set_tag(MLFLOW_RUN_NOTE, note(report, run_id))
    return run_id


def log_reproduction(found: Reproduction, model_id: str) -> str:
    """Log how a model compares with the one that was trained again; return the run's id.

    Uses the active run, else the one that `mlflow run` created, else a new one.

    Args:
        found: the comparison.
        model_id: id of the logged model.
    """
    with _active_or_new_run(f"reproduce: {printable(found.name)}") as run_id:
        _link_models(run_id, [model_id])
        mlflow.log_metrics(found.metrics)
        tags = {REPRODUCED_TAG: str(found.is_reproduced).lower()}
        mlflow.set_tags(tags | {MLFLOW_RUN_NOTE: reproduction.note(found)})
    return run_id


def _link_models(run_id: str, model_ids: Sequence[str]) -> None:
    """Make models inputs of a run: the UI shows them there."""
    # mlflow.log_inputs refuses models; the client does not.
    models = [LoggedModelInput(model_id) for model_id in model_ids if model_id]
    MlflowClient().log_inputs(run_id, models=models)


class ImageDataset(NumpyDataset):
    """Labelled images in MLflow's lineage; their profile says what is in them."""

    def __init__(self, subset: Subset, source: DatasetSource) -> None:
        self._subset = subset
        super().__init__(
            subset.pixels[:1].numpy(), source, subset.labels.numpy(), subset.name, subset.digest
        )

    @property
    def profile(self) -> dict[str, Any]:
        """Shape and data type of the images, mean of each channel, and the images per class."""
        subset, classes = self._subset, self._subset.task.classes
        counts = torch.bincount(subset.labels, minlength=len(classes)).tolist()
        return {
            "images": len(subset),
            "shape": list(subset.task.shape),
            "dtype": "uint8",
            "mean": [round(mean, 4) for mean in _means(subset)],
            "images_per_class": dict(zip(classes, counts, strict=True)),
        }


def _means(subset: Subset) -> Sequence[float]:
    """Return the mean of each channel in [0, 1]; of images in a file that of all training images.

    Reading these again for each run would take longer than training on some.
    """
    if subset.rows is not None:
        return subset.task.mean
    return (subset.pixels.double().mean(dim=(0, 2, 3)) / 255).tolist() if len(subset) else ()


def dataset_of(subset: Subset, folder: str = "") -> ImageDataset:
    """Return a subset as MLflow's lineage and metrics refer to it.

    Args:
        subset: the images.
        folder: where their files are; empty for images of the dataset.
    """
    folder = folder or ("" if "://" in subset.source else subset.source)
    if folder:
        source = get_dataset_source_from_json(json.dumps({"uri": folder}), "local")
    else:
        source = HTTPDatasetSource(subset.source)
    return ImageDataset(subset, source)


def log_pictures(run: Run, pictures: Mapping[str, Path]) -> None:
    """Log PNG files by key for the image grid of the UI, which shows runs side by side.

    All have step 0, so that runs of different lengths are shown together. What an interrupted
    attempt has logged is not logged again.
    """
    client = MlflowClient()
    # MLflow writes the compressed copy last.
    logged = {
        Path(file.path).name.partition("+")[0]
        for file in client.list_artifacts(run.info.run_id, "images")
        if "+compressed" in file.path
    }
    for key, path in pictures.items():
        if key not in logged:
            with Image.open(path) as picture:
                client.log_image(run.info.run_id, picture, key=key, step=0, synchronous=True)


def log_params(run: Run, params: Mapping[str, Any]) -> None:
    # `mlflow run` has already logged the entry point's parameters as typed. A parameter cannot be
    # logged again with another spelling (1e-1 for 0.1): mlflow/mlflow#3536.
    mlflow.log_params({key: params[key] for key in params.keys() - run.data.params.keys()})


def log_lineage(training: Subset, validation: Subset | None, test: Subset) -> None:
    subsets = {"training": training, "validation": validation, "test": test}
    _log_images({context: subset for context, subset in subsets.items() if subset is not None})


def _log_images(subsets: Mapping[str, Subset]) -> None:
    """Log which images the active run uses, by what it uses them for."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            mlflow.log_inputs(
                datasets=[dataset_of(subset) for subset in subsets.values()],
                contexts=list(subsets),
                tags_list=[{"images": str(len(subset))} for subset in subsets.values()],
            )
            return
        except MlflowException as error:
            # MLflow looks for the data of an experiment before it adds them: another process may
            # have added the same in between, which the database refuses.
            if error.error_code != "BAD_REQUEST" or attempt == ATTEMPTS:
                raise


def log_per_class(run: Run, subset: Subset, answers: Evaluation) -> None:
    logged = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    if PER_CLASS_ARTIFACT not in logged:  # log_table appends to an existing table
        table = tables.per_class(subset.labels, answers.logits.argmax(dim=1), subset.task.classes)
        mlflow.log_table(table, PER_CLASS_ARTIFACT)
