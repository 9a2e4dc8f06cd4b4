"""A training run leaves behind, in MLflow, everything needed to trust and repeat it."""

import json
import math
import platform
import shutil
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from PIL import Image
from torch.nn.functional import cross_entropy

from fashion.analysis import drawing, predictions, tables
from fashion.analysis.calibration import fit_temperature
from fashion.analysis.drawing import draw
from fashion.analysis.pictures import PICTURES
from fashion.analysis.predictions import Predictions
from fashion.data.dataset import Dataset, to_float
from fashion.errors import TrackingError
from fashion.models import catalogue
from fashion.settings.experiment import Architecture, Experiment, Recipe
from fashion.settings.task import FASHION_MNIST, Task
from fashion.tracking import models, records, runs, training
from fashion.tracking.store import connect
from fashion.training import evaluation, loop


@pytest.fixture(scope="module", autouse=True)
def _drawn_figures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw", draw)
        yield


@pytest.fixture(scope="module")
def trained(_empty_store: Path, small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with one run."""
    folder = tmp_path_factory.mktemp("trained")
    path = shutil.copy(_empty_store, folder / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.create_experiment("trained", artifact_location=str(folder / "artifacts"))
    mlflow.set_experiment("trained")
    experiment = Experiment(
        "baseline",
        val_size=200,
        device="cpu",
        recipe=Recipe(epochs=2, batch_size=32, lr=0.1, seed=42),
    )
    training.train(experiment, small)
    return path


@pytest.fixture
def run(trained: Path, store: Path) -> Run:
    """A run for tests that only read it, in a database of their own."""
    mlflow.set_tracking_uri(f"sqlite:///{shutil.copy(trained, store / 'trained.db')}")
    (run,) = mlflow.search_runs(experiment_names=["trained"], output_format="list")
    return run


def artifact(run: Run, name: str) -> str:
    return mlflow.artifacts.load_text(f"{run.info.artifact_uri}/{name}")


def test_parameters_say_what_ran(run: Run, small: Dataset) -> None:
    assert run.info.status == "FINISHED"
    assert run.data.params == {
        "model": "baseline",
        "preset": "lab",
        "tta": "False",
        "hidden_units": "10",
        "epochs": "2",
        "batch_size": "32",
        "lr": "0.1",
        "seed": "42",
        "kernels": "auto",
        "kernels_used": run.data.params["kernels_used"],
        "optimizer": "sgd",
        "momentum": "0.0",
        "nesterov": "False",
        "weight_decay": "0.0",
        "schedule": "constant",
        "warmup_epochs": "0.0",
        "label_smoothing": "0.0",
        "clip_norm": "0.0",
        "ema_decay": "0.0",
        "augment": "",
        "patience": "0",
        "mixup": "0.0",
        "freeze_epochs": "0",
        "precision": "float32",
        "class_weights": "none",
        "data": "fashion-mnist",
        "image_size": "0",
        "strict": "False",
        "image_shape": "1x28x28",
        "classes": "10",
        "val_size": "200",
        "split_seed": "42",
        "train_digest": small.split(200)[0].digest,
        "device": "cpu",
        "device_type": "cpu",
        "nproc": "1",
        "num_parameters": "7960",
    }


def test_tags_say_where_it_ran(run: Run) -> None:
    expected = {
        "model": "baseline",
        "device_name": "cpu",
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch_version": torch.__version__,
        "python_version": platform.python_version(),
    }
    assert run.data.tags.items() >= expected.items()


@pytest.mark.parametrize("metric", ["train_loss", "train_accuracy", "val_loss", "val_accuracy"])
def test_each_epoch_has_its_metrics(run: Run, metric: str) -> None:
    history = MlflowClient().get_metric_history(run.info.run_id, metric)
    assert [point.step for point in history] == [1, 2]
    assert all(math.isfinite(point.value) for point in history)


def test_test_data_is_measured_once_and_correctly(run: Run, small: Dataset) -> None:
    for metric in ("test_loss", "test_accuracy"):
        assert len(MlflowClient().get_metric_history(run.info.run_id, metric)) == 1
    training, validation = small.split(200)
    model = catalogue.build("baseline", seed=42)
    list(loop.train(model, training, Recipe(epochs=2)))
    test, val = evaluation.evaluate(model, small.test), evaluation.evaluate(model, validation)
    assert run.data.metrics["test_accuracy"] == pytest.approx(test.accuracy)
    assert run.data.metrics["test_loss"] == pytest.approx(test.loss)
    assert run.data.metrics["val_accuracy"] == pytest.approx(val.accuracy)


def test_speed_is_that_of_training(run: Run) -> None:
    seconds = run.data.metrics["train_seconds"]
    assert seconds > 0
    assert run.data.metrics["images_per_second"] == pytest.approx(2 * 1_800 / seconds)


def test_lineage_names_the_datasets_by_digest(run: Run, small: Dataset) -> None:
    training, validation = small.split(200)
    expected = {"training": training, "validation": validation, "test": small.test}
    logged = {entry.tags[0].value: entry for entry in run.inputs.dataset_inputs}
    contexts = {
        tag.value: entry
        for entry in run.inputs.dataset_inputs
        for tag in entry.tags
        if tag.key == "mlflow.data.context"
    }
    assert logged
    assert {context: entry.dataset.digest for context, entry in contexts.items()} == {
        context: subset.digest for context, subset in expected.items()
    }
    described = contexts["validation"].dataset
    assert "train-images-idx3-ubyte.gz" in described.source
    assert json.loads(described.profile)["images_per_class"]["Bag"] == 20
    assert "[-1, 1, 28, 28]" in described.schema


def test_its_model_is_ranked_by_what_was_measured_on_the_same_images(
    run: Run, small: Dataset
) -> None:
    _, validation = small.split(200)
    for subset, metric in ((validation, "val_accuracy"), (small.test, "test_accuracy")):
        order = {"dataset_name": subset.name, "dataset_digest": subset.digest}
        (model,) = mlflow.search_logged_models(
            [run.info.experiment_id],
            order_by=[{"field_name": f"metrics.{metric}", "ascending": False, **order}],
            datasets=[order],
            output_format="list",
        )
        assert model.source_run_id == run.info.run_id
        assert model.name == "baseline val_size=200 device=cpu epochs=2"
        linked = {each.key: each for each in model.metrics}[metric]
        assert linked.value == run.data.metrics[metric]
        assert linked.dataset_digest == subset.digest


def test_its_pictures_can_be_seen_beside_those_of_other_runs(run: Run) -> None:
    images = mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path="images")
    keys = [Path(image.path).name.split("+")[0] for image in images]
    # Each as PNG, and small as WebP.
    assert sorted(keys) == sorted([*PICTURES] * 2)
    assert run.data.tags["mlflow.loggedImages"] == "True"


def test_tables_agree_with_the_metrics(run: Run) -> None:
    confusion = pd.read_csv(StringIO(artifact(run, "confusion_matrix.csv")), index_col="true")
    assert list(confusion.index) == list(confusion.columns) == list(FASHION_MNIST.classes)
    counts = confusion.to_numpy()
    assert counts.sum() == 500
    assert counts.trace() / 500 == pytest.approx(run.data.metrics["test_accuracy"])

    table = json.loads(artifact(run, "per_class.json"))
    per_class = pd.DataFrame(table["data"], columns=table["columns"]).set_index("class")
    recall = pd.Series(counts.diagonal() / counts.sum(axis=1), index=list(FASHION_MNIST.classes))
    assert per_class["recall"].to_dict() == pytest.approx(recall.to_dict())
    assert per_class["images"].sum() == 500

    off_diagonal = counts - pd.DataFrame(counts).to_numpy() * torch.eye(10).long().numpy()
    first_line = artifact(run, "confused_pairs.txt").splitlines()[0]
    assert first_line.endswith(f": {off_diagonal.max()} times")


def test_calibration_is_that_of_the_test_answers(run: Run, small: Dataset) -> None:
    model = catalogue.build("baseline", seed=42)
    list(loop.train(model, small.split(200)[0], Recipe(epochs=2)))
    table = tables.calibration(small.test.labels, evaluation.evaluate(model, small.test).logits)
    assert run.data.metrics["test_ece"] == pytest.approx(tables.expected_calibration_error(table))
    assert 0 < run.data.metrics["test_ece"] < 0.5


def test_probabilities_are_calibrated_on_validation_data(run: Run, small: Dataset) -> None:
    model = catalogue.build("baseline", seed=42)
    training, validation = small.split(200)
    list(loop.train(model, training, Recipe(epochs=2)))
    temperature = fit_temperature(validation.labels, evaluation.evaluate(model, validation).logits)
    assert temperature != pytest.approx(1, abs=0.01)
    assert run.data.metrics["temperature"] == pytest.approx(temperature, rel=1e-3)
    stored = models.load_calibrated(models.model_uri(run)).temperature
    assert stored == run.data.metrics["temperature"]
    logits = evaluation.evaluate(model, small.test).logits / temperature
    error = tables.expected_calibration_error(tables.calibration(small.test.labels, logits))
    assert run.data.metrics["test_ece_calibrated"] == pytest.approx(error, abs=1e-3)


def predictions_of(run: Run) -> dict[str, Predictions]:
    uri = f"{run.info.artifact_uri}/{predictions.FILE}"
    return predictions.read(Path(mlflow.artifacts.download_artifacts(uri)))


def test_all_predictions_are_kept_with_the_digests_of_their_images(
    run: Run, small: Dataset
) -> None:
    kept = predictions_of(run)
    for split, prefix, subset in (
        ("validation", "val", small.split(200)[1]),
        ("test", "test", small.test),
    ):
        assert kept[split].digest == subset.digest
        assert torch.equal(kept[split].labels, subset.labels)
        accuracy = kept[split].right.double().mean().item()
        assert accuracy == run.data.metrics[f"{prefix}_accuracy"]
        assert kept[split].logits.dtype == torch.float16
        loss = cross_entropy(kept[split].logits.float(), subset.labels).item()
        assert loss == pytest.approx(run.data.metrics[f"{prefix}_loss"], rel=1e-3)


def test_a_run_that_stops_early_reports_the_weights_it_kept(
    train_small: Callable[..., str], small: Dataset
) -> None:
    run = mlflow.get_run(train_small("cnn", epochs=50, batch_size=8, lr=0.2, patience=1))
    history = MlflowClient().get_metric_history(run.info.run_id, "val_loss")
    losses = {metric.step: metric.value for metric in sorted(history, key=lambda m: -m.timestamp)}
    assert len(losses) < 50
    assert run.data.metrics["val_loss"] == min(metric.value for metric in history)
    assert run.data.metrics["best_epoch"] == min(losses, key=losses.get)
    stored = models.load(models.model_uri(run))
    _, validation = small.split(200)
    measured = evaluation.evaluate(stored, validation)
    assert measured.loss == pytest.approx(run.data.metrics["val_loss"], rel=1e-3)
    kept = predictions_of(run)["validation"]
    assert kept.right.double().mean().item() == run.data.metrics["val_accuracy"]
    assert torch.allclose(kept.logits.float(), measured.logits, rtol=1e-2, atol=1e-2)


def test_a_diverged_run_is_logged_to_its_end(train_small: Callable[..., str]) -> None:
    run = mlflow.get_run(train_small("nonlinear-fixed", lr=1e30))
    assert run.info.status == "FINISHED"
    assert math.isnan(run.data.metrics["test_loss"])
    names = {file.path for file in mlflow.artifacts.list_artifacts(run_id=run.info.run_id)}
    assert "confusion_matrix.png" in names
    assert "reliability.png" not in names


@pytest.mark.parametrize(
    "name",
    [
        "confusion_matrix.png",
        "learning_curves.png",
        "predictions.png",
        "confidently_wrong.png",
        "reliability.png",
        "precision_recall.png",
    ],
)
def test_figures_are_pictures(run: Run, name: str) -> None:
    picture = mlflow.artifacts.load_image(f"{run.info.artifact_uri}/{name}")
    assert isinstance(picture, Image.Image)
    assert min(picture.size) > 300
    assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 10


def test_the_note_sums_the_run_up(run: Run) -> None:
    note = run.data.tags["mlflow.note.content"]
    assert f"{run.data.metrics['test_accuracy']:.2%}" in note
    assert f"{run.data.metrics['val_accuracy']:.2%}" in note
    assert artifact(run, "confused_pairs.txt").splitlines()[0] in note


def test_the_model_loads_back_without_pickle_and_gives_the_same_logits(
    run: Run, small: Dataset
) -> None:
    uri = f"models:/{run.outputs.model_outputs[0].model_id}"
    info = mlflow.models.get_model_info(uri)
    files = mlflow.artifacts.list_artifacts(f"{info.artifact_path}/data")
    assert [file.path for file in files] == ["data/model.pt2"]
    assert [param.name for param in info.signature.params.params] == ["top", "invert"]
    assert info.metadata["classes"] == list(FASHION_MNIST.classes)
    requirements = mlflow.artifacts.load_text(f"{info.artifact_path}/requirements.txt").split()
    assert all("==" in requirement for requirement in requirements)

    model = catalogue.build("baseline", seed=42)
    list(loop.train(model, small.split(200)[0], Recipe(epochs=2)))
    loaded = mlflow.pytorch.load_model(uri)
    for size in (1, 7):  # the batch size is free
        images = small.test.images[:size]
        torch.testing.assert_close(
            evaluation.predict(loaded, images),
            evaluation.predict(model, images),
            rtol=1e-5,
            atol=1e-5,
        )
    by_pyfunc = mlflow.pyfunc.load_model(uri).predict(to_float(small.test.images[:3]).numpy())
    best = evaluation.predict(model, small.test.images[:3]).argmax(dim=1)
    assert by_pyfunc["class"].tolist() == [FASHION_MNIST.classes[index] for index in best]
    logged = mlflow.get_logged_model(info.model_id)
    assert {metric.key for metric in logged.metrics} >= {"test_loss", "test_accuracy"}


def test_without_validation_nothing_is_selected_on(train_small: Callable[..., str]) -> None:
    run = mlflow.get_run(train_small("nonlinear", val_size=0))
    assert "val_accuracy" not in run.data.metrics
    assert "train_accuracy" in run.data.metrics
    assert len(run.inputs.dataset_inputs) == 2


def test_children_belong_to_their_group(store: object, small: Dataset) -> None:
    experiment = Experiment(
        "baseline", architecture=Architecture(), val_size=200, device="cpu", recipe=Recipe(epochs=1)
    )
    with runs.running(name="lab") as parent:
        child = training.train(experiment, small, nested=True)
    parent_id = parent.info.run_id
    assert mlflow.get_run(child).data.tags["mlflow.parentRunId"] == parent_id
    assert mlflow.get_run(parent_id).info.status == "FINISHED"


def test_a_run_opened_by_mlflow_run_is_continued_whatever_the_spelling_of_its_parameters(
    train_small: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = MlflowClient().create_run(mlflow.get_experiment_by_name("test").experiment_id)
    MlflowClient().log_param(opened.info.run_id, "lr", "1e-1")
    monkeypatch.setenv("MLFLOW_RUN_ID", opened.info.run_id)
    assert train_small() == opened.info.run_id
    run = mlflow.get_run(opened.info.run_id)
    assert run.data.params["lr"] == "1e-1"
    assert run.data.params["epochs"] == "1"


def broken(hidden_units: int, task: Task) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, hidden_units))


def test_a_failure_leaves_the_run_failed(
    store: object, small: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalogue.MODELS, "broken", f"{__name__}:broken")
    experiment = Experiment(
        "broken", architecture=Architecture(), val_size=200, device="cpu", recipe=Recipe(epochs=1)
    )
    with pytest.raises(RuntimeError):
        training.train(experiment, small)
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FAILED"


@pytest.mark.parametrize("conflicts", [1, records.ATTEMPTS])
def test_images_that_another_process_logs_meanwhile_are_logged_again(
    train_small: Callable[..., str], monkeypatch: pytest.MonkeyPatch, conflicts: int
) -> None:
    log_inputs, failures = mlflow.log_inputs, iter(range(conflicts))

    def conflicting(**inputs: object) -> None:
        if next(failures, None) is not None:
            raise MlflowException("duplicate key value violates dataset_pk", BAD_REQUEST)
        log_inputs(**inputs)

    monkeypatch.setattr(mlflow, "log_inputs", conflicting)
    if conflicts == records.ATTEMPTS:
        with pytest.raises(TrackingError, match="duplicate key"):
            train_small()
    else:
        logged = mlflow.get_run(train_small()).inputs.dataset_inputs
        assert {tag.value for each in logged for tag in each.tags if "context" in tag.key} == {
            *("training", "validation", "test")
        }


def test_system_metrics_are_logged_when_asked(store: object, small: Dataset) -> None:
    mlflow.set_system_metrics_sampling_interval(0.2)
    try:
        experiment = Experiment(
            "baseline",
            architecture=Architecture(),
            val_size=200,
            device="cpu",
            recipe=Recipe(epochs=1),
        )
        run = mlflow.get_run(training.train(experiment, small, system_metrics=True))
    finally:
        mlflow.set_system_metrics_sampling_interval(None)
    assert any(name.startswith("system/") for name in run.data.metrics)


def test_an_unreachable_server_is_said_at_once_and_without_its_password(
    store: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri("http://alice:secret@127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9") as caught:
        connect()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_cannot_be_opened_is_said_in_one_line(store: object) -> None:
    mlflow.set_tracking_uri("sqlite:////proc/nowhere/mlflow.db")
    with pytest.raises(TrackingError, match="/proc/nowhere") as caught:
        connect()
    assert "\n" not in str(caught.value)


def test_a_diverged_seed_leaves_no_mean(store: object) -> None:
    client = MlflowClient()
    experiment_id = mlflow.get_experiment_by_name("test").experiment_id
    children = []
    for loss, accuracy in ((math.nan, 0.1), (0.30, 0.8), (0.32, 0.9)):
        children.append(client.create_run(experiment_id).info.run_id)
        client.log_metric(children[-1], "test_loss", loss)
        client.log_metric(children[-1], "test_accuracy", accuracy)
    with runs.running(name="seeds") as parent:
        spread = records.log_spread(children)
    assert math.isnan(spread["test_loss"][0])
    assert math.isnan(spread["test_loss"][1])
    assert spread["test_accuracy"] == pytest.approx((0.6, 0.4359), abs=1e-4)
    logged = mlflow.get_run(parent.info.run_id).data.metrics
    assert math.isnan(logged["test_loss_mean"])
    assert math.isnan(logged["test_loss_std"])
