"""A training that was cut off ends as if it had not been."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus, Run

from entrypoints.close import close
from fashion.data.dataset import Dataset
from fashion.errors import TrackingError
from fashion.files import FileError
from fashion.models import catalogue
from fashion.settings.experiment import Architecture, Recipe
from fashion.tracking import checkpoint, environment, evidence, models, training
from fashion.tracking.checkpoint import CheckpointError
from fashion.training import loop
from tests.conftest import head

RUN_ID = "0123456789abcdef0123456789abcdef"
EPOCHS = 3


@pytest.fixture(autouse=True)
def kept_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASHION_STATE_DIR", str(tmp_path / "state"))


@pytest.mark.parametrize(
    ("model", "architecture", "settings"),
    [
        ("baseline", {}, {}),
        ("nonlinear", {}, {"kernels": "torch"}),
        ("cnn", {"dropout": 0.5}, {"optimizer": "sgd", "momentum": 0.9, "nesterov": True}),
        ("cnn", {}, {"kernels": "torch", "optimizer": "adam", "schedule": "cosine"}),
        (
            "compact",
            {"hidden_units": 4, "dropout": 0.2},
            {
                "optimizer": "muon",
                "lr": 0.02,
                "schedule": "one-cycle",
                "warmup_epochs": 1,
                "ema_decay": 0.9,
                "augment": ("flip", "shift", "erase"),
                "mixup": 0.2,
            },
        ),
        (
            "resnet",
            {"hidden_units": 4, "blocks": 1},
            {
                "optimizer": "adamw",
                "lr": 0.01,
                "schedule": "cosine",
                "warmup_epochs": 1.5,
                "patience": 2,
                "freeze_epochs": 1,
                "clip_norm": 1.0,
            },
        ),
    ],
)
def test_a_training_goes_on_to_the_same_bits(
    small: Dataset,
    model: str,
    architecture: dict[str, Any],
    settings: dict[str, Any],
    subtests: pytest.Subtests,
) -> None:
    data, validation = head(small.train, 320), head(small.test, 100)
    recipe = Recipe(epochs=EPOCHS, **settings)

    def build() -> torch.nn.Module:
        return catalogue.build(model, 7, Architecture(**architecture))

    whole, saved = build(), []
    expected = list(loop.train(whole, data, recipe, validation))
    measured = [(epoch.number, epoch.loss, epoch.validation.loss) for epoch in expected]
    checkpoint.prepare()
    with checkpoint.held(RUN_ID):
        for epoch in loop.train(build(), data, recipe, validation):
            checkpoint.save(RUN_ID, epoch.state)
            saved.append(checkpoint.load(RUN_ID))
    assert len(saved) == EPOCHS

    for stop, state in enumerate(saved, start=1):
        with subtests.test(stopped_after=stop):
            resumed = build()
            rest = list(loop.train(resumed, data, recipe, validation, state))
            found = [(epoch.number, epoch.loss, epoch.validation.loss) for epoch in rest]
            assert found == measured[stop:]
            assert not resumed.training
            for (name, tensor), other in zip(
                whole.state_dict().items(), resumed.state_dict().values(), strict=True
            ):
                assert torch.equal(tensor, other), name


def test_a_training_stopped_early_stays_stopped(small: Dataset) -> None:
    recipe = Recipe(epochs=9, lr=1e-30, patience=1)
    model = catalogue.build("baseline", 0)
    *_, last = loop.train(model, small.train, recipe, small.test)
    assert last.number < 9
    assert list(loop.train(model, small.train, recipe, small.test, last.state)) == []


class CutError(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Return a function that lets the nth call of a function of MLflow fail, once."""

    def arrange(function: str, call: int) -> None:
        original, calls = getattr(mlflow, function), iter(range(1, 1000))

        def failing(*args: Any, **kwargs: Any) -> Any:
            if next(calls) == call:
                raise CutError(function)
            return original(*args, **kwargs)

        monkeypatch.setattr(mlflow, function, failing)

    return arrange


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("log_params", 1),
        ("log_inputs", 1),
        ("log_metrics", 4),  # the final ones: those of epochs are tried again by the run itself
        ("log_metrics", 5),
        ("log_metrics", 7),
        ("log_artifacts", 1),
        ("log_table", 1),
        ("set_tag", 1),  # the note
    ],
)
def test_a_run_cut_off_anywhere_is_completed_without_doubles(
    train_small: Callable[..., str],
    small: Dataset,
    cut: Callable[[str, int], None],
    function: str,
    call: int,
) -> None:
    settings = {"epochs": 3, "patience": 3}
    whole = mlflow.get_run(train_small(**settings))
    cut(function, call)
    with pytest.raises(TrackingError, match=function):
        train_small(**settings)
    (run_id,) = checkpoint.unfinished()
    failed = mlflow.get_run(run_id)
    assert failed.info.status == "FAILED"
    assert failed.data.tags["failure"].startswith("the tracking store ")

    assert training.resume("latest", small) == run_id
    assert checkpoint.unfinished() == []
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "failure" not in run.data.tags
    assert run.data.params == whole.data.params
    timed = {"train_seconds", "images_per_second"}
    for name, value in whole.data.metrics.items():
        history = MlflowClient().get_metric_history(run_id, name)
        expected = MlflowClient().get_metric_history(whole.info.run_id, name)
        assert [point.step for point in history] == [point.step for point in expected], name
        if name not in timed:
            assert run.data.metrics[name] == value, name
    assert artifacts(run_id) == artifacts(whole.info.run_id)
    table = mlflow.load_table("per_class.json", [run_id])
    assert len(table) == 10
    assert len(run.outputs.model_outputs) == 1
    assert len(run.inputs.dataset_inputs) == len(whole.inputs.dataset_inputs)
    evidence.measure(run, models.model_uri(run), small)


@pytest.mark.parametrize("end", [KeyboardInterrupt, CutError])
@pytest.mark.parametrize(
    "function", ["log_outputs", "log_model_artifacts", "finalize_logged_model"]
)
def test_a_model_that_was_half_logged_is_completed(
    train_small: Callable[..., str],
    small: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    end: type[BaseException],
) -> None:
    """An error marks a model as failed, what ends the process leaves it pending."""

    def ending(*_: Any, **__: Any) -> None:
        raise end(function)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, function, ending)
        with pytest.raises((KeyboardInterrupt, TrackingError)):
            train_small()
    (run_id,) = checkpoint.unfinished()
    training.resume(run_id, small)
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    (model,) = mlflow.search_logged_models(output_format="list")
    assert model.status == LoggedModelStatus.READY
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert {metric.key for metric in model.metrics} >= {"test_loss", "test_accuracy"}
    whole = mlflow.get_run(train_small())
    assert files(run) == files(whole)
    evidence.measure(run, models.model_uri(run), small)


def files(run: Run) -> set[str]:
    """Return what the archive of the run's model is made of."""
    folder = mlflow.artifacts.download_artifacts(models.model_uri(run))
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*")}


def test_a_run_that_another_process_is_at_is_left_alone(
    train_small: Callable[..., str], small: Dataset, cut: Callable[[str, int], None]
) -> None:
    cut("log_artifacts", 1)
    with pytest.raises(TrackingError):
        train_small()
    (run_id,) = checkpoint.unfinished()
    with checkpoint.held(run_id), pytest.raises(CheckpointError, match="in use by another process"):
        training.resume(run_id, small)
    assert mlflow.get_run(run_id).info.status == "FAILED"


def test_changed_settings_are_refused_with_their_list(
    train_small: Callable[..., str], small: Dataset, cut: Callable[[str, int], None]
) -> None:
    cut("log_inputs", 1)
    with pytest.raises(TrackingError):
        train_small(epochs=2)
    given = {"epochs": 3, "lr": 0.5, "model": "baseline"}
    with pytest.raises(CheckpointError, match=r"epochs was 2, is 3; lr was 0\.1, is 0\.5"):
        training.resume("latest", small, given)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with pytest.raises(CheckpointError, match=f"threads was {threads}, is {threads + 1}"):
            training.resume("latest", small)
    finally:
        torch.set_num_threads(threads)
    assert training.resume("latest", small, {"epochs": 2, "model": "baseline"})


@pytest.mark.parametrize("run_id", ["latest", RUN_ID])
def test_there_is_nothing_to_resume(store: Path, small: Dataset, run_id: str) -> None:
    with pytest.raises(CheckpointError, match="no unfinished run"):
        training.resume(run_id, small)


@pytest.mark.parametrize("name", ["../../elsewhere", "latest", "", "0123"])
def test_the_name_of_a_run_leads_nowhere_else(name: str) -> None:
    checkpoint.prepare()
    with pytest.raises(CheckpointError, match="is not the id of a run"):
        checkpoint.load(name)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "evil"),)

    checkpoint.prepare()
    with checkpoint.held(RUN_ID):
        checkpoint.save(RUN_ID, {"state": Evil()})
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(RUN_ID)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("size", [0, 100, -1])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, size: int) -> None:
    checkpoint.prepare()
    with checkpoint.held(RUN_ID):
        checkpoint.save(RUN_ID, {"weights": torch.rand(1000)})
    (path,) = tmp_path.rglob("*.pt")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=str(path)):
        checkpoint.load(RUN_ID)


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.prepare()
    with checkpoint.held(RUN_ID):
        checkpoint.save(RUN_ID, {"epoch": 1})

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(FileError, match="No space left on device"):
            checkpoint.save(RUN_ID, {"epoch": 2})
    assert checkpoint.load(RUN_ID) == {"epoch": 1}
    assert {path.name for path in (tmp_path / "state" / "runs" / RUN_ID).iterdir()} == {
        "checkpoint.pt",
        "lock",
    }


def test_a_state_directory_that_cannot_be_is_said_before_a_run_is_created(
    train_small: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASHION_STATE_DIR", str(tmp_path / "file" / "folder"))
    with pytest.raises(FileError, match="FASHION_STATE_DIR"):
        train_small()
    assert mlflow.search_runs(output_format="list") == []


def test_a_changed_processor_or_changed_code_is_named_and_accepted_only_if_asked(
    train_small: Callable[..., str],
    small: Dataset,
    cut: Callable[[str, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut("log_inputs", 1)
    with pytest.raises(TrackingError):
        train_small()
    (run_id,) = checkpoint.unfinished()
    code = environment.code() | {"fashion/training/augmentation.py": "edited"}
    monkeypatch.setattr(environment, "code", lambda: code)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    changes = "cpu_capability was .*, is OTHER; fashion/training/augmentation.py changed"
    with pytest.raises(CheckpointError, match=changes):
        training.resume(run_id, small)
    assert "resumed_with_changes" not in mlflow.get_run(run_id).data.tags
    training.resume(run_id, small, allow_changes=True)
    tag = mlflow.get_run(run_id).data.tags["resumed_with_changes"]
    assert tag.startswith("after epoch 0: cpu_capability was ")
    assert tag.endswith("; after epoch 0: fashion/training/augmentation.py changed")


def test_what_a_kill_left_inside_the_first_checkpoint_is_cleaned(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment_id = mlflow.get_experiment_by_name("test").experiment_id
    run_id = MlflowClient().create_run(experiment_id).info.run_id
    checkpoint.prepare()
    part = checkpoint.folder(run_id) / ".incoming-x" / "checkpoint.pt"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"part")
    result = CliRunner().invoke(close, [])
    assert result.stdout == f"{run_id}: closed\n"
    assert checkpoint.unfinished() == []


def test_an_interrupted_run_is_extended_to_the_bits_of_a_longer_one(
    train_small: Callable[..., str],
    small: Dataset,
    cut: Callable[[str, int], None],
) -> None:
    whole = mlflow.get_run(train_small("baseline", epochs=4, warmup_epochs=0.5))
    cut("log_artifacts", 1)
    with pytest.raises(TrackingError):
        train_small("baseline", epochs=2, warmup_epochs=0.5)
    (short,) = checkpoint.unfinished()
    with pytest.raises(CheckpointError, match="has trained 2 epochs already, not 1"):
        training.resume("latest", small, {"epochs": 1})
    run = mlflow.get_run(training.resume("latest", small, {"epochs": 4}))
    assert run.data.params == whole.data.params
    assert run.data.tags["continues"] == short
    assert mlflow.get_run(short).data.tags["continued_as"] == run.info.run_id
    history = MlflowClient().get_metric_history(run.info.run_id, "val_loss")
    assert [point.step for point in history] == [1, 2, 3, 4]
    weights = [models.load(models.model_uri(each)).state_dict() for each in (run, whole)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert checkpoint.unfinished() == []


def test_a_decaying_schedule_is_not_extended(
    train_small: Callable[..., str], small: Dataset, cut: Callable[[str, int], None]
) -> None:
    cut("log_inputs", 1)
    with pytest.raises(TrackingError):
        train_small(epochs=2, schedule="cosine")
    with pytest.raises(CheckpointError, match=r"its cosine schedule depend on their number, 2"):
        training.resume("latest", small, {"epochs": 4})


def artifacts(run_id: str) -> set[str]:
    return {file.path for file in MlflowClient().list_artifacts(run_id)}
