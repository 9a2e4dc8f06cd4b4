"""What is registered, and which version is champion: tiny models, really trained and stored."""

import hashlib
import json
import logging
import multiprocessing
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.synchronize import Barrier
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import CliRunner, Result
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Run
from mlflow.exceptions import ErrorCode, MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_GIT_COMMIT

from entrypoints.register import register as register_command
from fashion.data import sources
from fashion.data.dataset import Dataset
from fashion.errors import RegistryError
from fashion.settings.experiment import Architecture, Experiment, Recipe
from fashion.settings.gate import Gate
from fashion.settings.metrics import SELECTING_METRICS
from fashion.settings.task import MODEL_NAME
from fashion.tracking import evidence, models, registry, selection, training
from fashion.tracking.contest import CONTEST, CONTEST_IMAGES
from fashion.tracking.evidence import CHECKSUM, TEST_RIGHT, VALIDATION_RIGHT
from fashion.tracking.query import Query
from fashion.tracking.registry import CHALLENGER, CHAMPION, PREVIOUS, Registration
from fashion.tracking.versions import FORCED
from fashion.training import evaluation
from tests.conftest import HANG_SECONDS, assert_one_line

# Far enough apart that no processor's rounding changes their order. Each is the one run of an
# experiment of its own name.
RECIPES = {
    "poor": (200, Recipe(epochs=1, batch_size=32, lr=0.1, seed=1)),
    "good": (200, Recipe(epochs=1, batch_size=8, lr=0.05, seed=0)),
    "best": (200, Recipe(epochs=1, batch_size=4, lr=0.05, seed=0)),
    "other-split": (300, Recipe(epochs=1, batch_size=8, lr=0.05, seed=0)),
}
UNTESTED = Gate(min_p=1)


@pytest.fixture(scope="module")
def _one_thread() -> Iterator[None]:
    """Torch's threads wait for each other at every small batch: on a busy machine for minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained(
    _empty_store: Path,
    _one_thread: None,
    small: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A database with four CNNs, and no model registered."""
    folder = tmp_path_factory.mktemp("trained")
    path = shutil.copy(_empty_store, folder / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    for name, (val_size, recipe) in RECIPES.items():
        mlflow.create_experiment(name, artifact_location=str(folder / "artifacts"))
        mlflow.set_experiment(name)
        training.train(
            Experiment(
                "cnn", architecture=Architecture(), val_size=val_size, device="cpu", recipe=recipe
            ),
            small,
        )
    return path


@pytest.fixture
def runs(
    trained: Path,
    store: Path,
    small: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> dict[str, str]:
    """The ids of the four runs by name, in a database of their own that is the tracking store.

    The commands see the small dataset, which is what the runs were trained and measured on.
    """
    shutil.copy(trained, store / "trained.db")
    uri = f"sqlite:///{store / 'trained.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    mlflow.set_tracking_uri(uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "good")
    mlflow.set_experiment("good")
    monkeypatch.setattr(sources, "load_dataset", lambda *_: small)
    caplog.set_level(logging.WARNING)
    found = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return {MlflowClient().get_experiment(r.info.experiment_id).name: r.info.run_id for r in found}


@pytest.fixture
def register(runs: dict[str, str], small: Dataset) -> Callable[..., Registration]:
    """Return a function that registers one of the four runs; a better one becomes champion."""

    def call(
        run: str, metric: str = "val_accuracy", gate: Gate = UNTESTED, **options: bool
    ) -> Registration:
        query = Query(experiments=[run], models=["cnn"], metric=metric)
        return registry.register(MODEL_NAME, query, small, gate=gate, **options)

    return call


def run_register(*arguments: str) -> Result:
    return CliRunner().invoke(register_command, arguments)


def versions(name: str = MODEL_NAME) -> dict[str, str]:
    """Return the run's id of each version, by its number."""
    found = MlflowClient().search_model_versions(f"name = '{name}'")
    return {str(v.version): v.run_id for v in sorted(found, key=lambda v: int(v.version))}


def aliases(name: str = MODEL_NAME) -> dict[str, str]:
    found = MlflowClient().get_registered_model(name).aliases
    return {alias: str(version) for alias, version in found.items()}


def registered() -> dict[str, tuple[dict[str, str], list[tuple[str, dict, str]]]]:
    """Return all that the registry holds: aliases, and each version's tags and description."""
    client = MlflowClient()
    return {
        model.name: (
            model.aliases,
            [
                (v.version, v.tags, v.description)
                for v in client.search_model_versions(f"name = '{model.name}'")
            ],
        )
        for model in client.search_registered_models()
    }


def make_run(status: str, model: str = "cnn", **metrics: float) -> str:
    """Log a run without a model to the active experiment."""
    client = MlflowClient()
    experiment = client.get_experiment_by_name("good")
    run_id = client.create_run(experiment.experiment_id, tags={"model": model}).info.run_id
    client.log_batch(run_id, [Metric(key, value, 1, 1) for key, value in metrics.items()])
    client.update_run(run_id, status=status)
    return run_id


def test_the_best_cnn_is_registered_and_becomes_champion(
    runs: dict[str, str], small: Dataset
) -> None:
    make_run("FINISHED", model="baseline", val_accuracy=0.99)
    result = run_register("--experiment", "poor,good,best")
    assert result.exit_code == 0, result.output
    assert versions() == {"1": runs["best"]}
    assert aliases() == {CHAMPION: "1"}
    assert f"{MODEL_NAME} version 1 registered, from run {runs['best']}" in result.stdout
    assert f"{CHAMPION} is version 1: first {CHAMPION}" in result.stdout

    logits = evaluation.predict(models.load(f"models:/{MODEL_NAME}@{CHAMPION}"), small.test.images)
    accuracy = (logits.argmax(dim=1) == small.test.labels).double().mean().item()
    assert accuracy == pytest.approx(mlflow.get_run(runs["best"]).data.metrics["test_accuracy"])


def test_an_unfinished_run_is_not_chosen_however_good_it_is(
    runs: dict[str, str], small: Dataset
) -> None:
    # More of them than the first page of a comparison.
    for status in ("RUNNING", "SCHEDULED", "FAILED", "KILLED") * 6:
        make_run(status, val_accuracy=0.99, val_loss=0.01)
    for metric in ("val_accuracy", "val_loss"):
        query = Query(models=["cnn"], metric=metric)
        best = next(selection.candidates(query, None, small))
        assert best.info.run_id == runs["good"]


@pytest.mark.parametrize("metrics", [{}, {"test_accuracy": 0.9}, {"val_accuracy": float("nan")}])
def test_without_a_finished_run_that_has_the_metric_the_message_says_what_to_do(
    runs: dict[str, str], metrics: dict[str, float]
) -> None:
    MlflowClient().delete_run(runs["good"])
    make_run("FINISHED", **metrics)
    make_run("RUNNING", val_accuracy=0.99)
    message = assert_one_line(run_register())
    assert "no finished cnn run in experiment good has logged val_accuracy" in message
    assert not registered()


def test_a_run_that_cannot_be_registered_is_passed_over(
    runs: dict[str, str], archives: dict[str, Path]
) -> None:
    foreign = make_run("FINISHED", val_accuracy=0.99)
    archives["best"].unlink()
    for arguments in (["--dry-run"], []):
        result = run_register("--experiment", "poor,good,best", *arguments)
        assert result.exit_code == 0, result.output
        assert f"from run {runs['good']}" in result.stdout
        assert f"passed over: run {runs['best']}: models:/m-" in result.stdout
        assert "cannot be loaded" in result.stdout
        assert "better on other images, so not compared: 1 run with" in result.stdout
    assert versions() == {"1": runs["good"]}
    MlflowClient().delete_run(foreign)
    archives["good"].unlink()
    assert "delete version 1" in run_register("--experiment", "poor,good").stdout


def test_without_any_run_that_can_be_registered_nothing_is(
    runs: dict[str, str], archives: dict[str, Path]
) -> None:
    archives["good"].unlink()
    archives["poor"].unlink()
    message = assert_one_line(run_register("--experiment", "good,poor"))
    assert f"nothing to register: run {runs['good']}: models:/m-" in message
    assert "cannot be loaded" in message
    assert message.endswith("(and 1 more run)\n")
    assert not registered()


@pytest.mark.usefixtures("runs")
def test_a_test_metric_selects_only_when_insisted_on() -> None:
    result = run_register("--metric", "test_accuracy")
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2
    assert "--select-on-test" in result.stderr
    assert not registered()

    result = run_register("--metric", "test_accuracy", "--select-on-test")
    assert result.exit_code == 0, result.output
    (version,) = MlflowClient().search_model_versions(f"name = '{MODEL_NAME}'")
    assert "test_accuracy, **on the test set**" in version.description


@pytest.mark.parametrize(("metric", "change"), list(zip(SELECTING_METRICS, cycle([5e-4, -5e-4]))))
def test_a_metric_that_the_stored_model_does_not_give_is_refused(
    runs: dict[str, str], metric: str, change: float
) -> None:
    value = mlflow.get_run(runs["good"]).data.metrics[metric]
    MlflowClient().log_metric(runs["good"], metric, value + change, step=9)
    message = assert_one_line(run_register())
    assert metric in message
    assert runs["good"] in message
    assert not registered()


def test_a_value_that_was_overwritten_does_not_make_a_run_the_best(runs: dict[str, str]) -> None:
    MlflowClient().log_metric(runs["poor"], "val_accuracy", 0.999, step=9)
    result = run_register("--experiment", "poor,good")
    assert result.exit_code == 0, result.output
    assert versions() == {"1": runs["good"]}
    assert (
        f"passed over: the stored model of run {runs['poor']} gives val_accuracy" in result.stdout
    )


def test_a_foreign_run_that_looks_like_ours_is_passed_over_and_creates_nothing(
    runs: dict[str, str],
) -> None:
    like = mlflow.get_run(runs["poor"])
    foreign = make_run("FINISHED", **like.data.metrics | {"val_accuracy": 0.99})
    client = MlflowClient()
    client.log_inputs(foreign, like.inputs.dataset_inputs)
    client.log_param(foreign, "val_size", "200")
    model = models.model_uri(like).removeprefix("models:/")
    client.log_outputs(foreign, [LoggedModelOutput(model, step=0)])
    client.log_metric(foreign, "val_accuracy", like.data.metrics["val_accuracy"], step=9)
    client.delete_run(runs["good"])
    assert "lacks parameters" in assert_one_line(run_register())
    assert not registered()


@pytest.mark.parametrize(
    ("step", "error", "said"),
    [
        ("create_registered_model", "PERMISSION_DENIED", "ask for permission to edit"),
        ("search_model_versions", "TEMPORARILY_UNAVAILABLE", "start it"),
        ("set_registered_model_alias", "RESOURCE_DOES_NOT_EXIST", "deleted meanwhile"),
    ],
)
def test_what_the_registry_refuses_is_said_in_one_line(
    runs: dict[str, str], monkeypatch: pytest.MonkeyPatch, step: str, error: str, said: str
) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise MlflowException("no, you may not", error_code=ErrorCode.Value(error))

    monkeypatch.setattr(MlflowClient, step, refuse)
    with pytest.raises(RegistryError, match=said) as refused:
        registry.register(MODEL_NAME, Query(models=["cnn"]), sources.load_dataset())
    assert "no, you may not" in str(refused.value)


@pytest.mark.usefixtures("runs")
def test_a_registry_that_mlflow_cannot_use_is_named_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "carrier-pigeon://loft")
    for options in ([], ["--dry-run"], ["--rollback"]):
        assert "set MLFLOW_REGISTRY_URI" in assert_one_line(run_register(*options))


def test_a_mark_on_the_logged_model_that_is_not_allowed_does_not_stop_a_registration(
    register: Callable[..., Registration], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: object, **_keywords: object) -> None:
        raise MlflowException("Permission denied")

    monkeypatch.setattr(MlflowClient, "set_logged_model_tags", refuse)
    outcome = register("good")
    assert (outcome.version, outcome.created, outcome.champion) == ("1", True, "1")


@pytest.fixture
def archives(runs: dict[str, str]) -> Iterator[dict[str, Path]]:
    """The model files of the runs by name; the next test finds them as they were."""
    paths = {name: _archive(mlflow.get_run(run_id)) for name, run_id in runs.items()}
    contents = {path: path.read_bytes() for path in paths.values()}
    yield paths
    for path, content in contents.items():
        path.write_bytes(content)


def _archive(run: Run) -> Path:
    model = mlflow.get_logged_model(models.model_uri(run).removeprefix("models:/"))
    (path,) = Path(model.artifact_location).rglob("*.pt2")
    return path


def test_the_model_of_another_run_is_refused(archives: dict[str, Path]) -> None:
    shutil.copy(archives["poor"], archives["good"])
    assert "but the run logged" in assert_one_line(run_register())
    assert not registered()


@pytest.mark.parametrize("damage", ["truncated", "emptied", "shortened", "deleted", "altered"])
def test_a_damaged_model_is_refused_in_one_line(
    archives: dict[str, Path], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = archives["good"]
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    elif damage == "altered":
        # In the middle of the graph's description, which is text.
        middle = content.index(b'"graph_module"')
        path.write_bytes(content[:middle] + b"\xff" + content[middle + 1 :])
    else:
        kept = {"truncated": len(content) // 2, "emptied": 0, "shortened": len(content) - 100}
        path.write_bytes(content[: kept[damage]])
    assert "cannot be loaded" in assert_one_line(run_register())
    assert "Traceback" not in caplog.text
    assert not registered()


def test_a_model_for_other_images_is_refused_in_one_line(archives: dict[str, Path]) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 10)).eval()
    batch = torch.export.Dim.DYNAMIC
    program = torch.export.export(model, (torch.zeros(2, 3, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, archives["good"])
    assert "fails on the validation images" in assert_one_line(run_register())
    assert not registered()


def test_a_version_tells_where_it_comes_from_and_what_it_is(
    runs: dict[str, str], register: Callable[..., Registration]
) -> None:
    MlflowClient().set_tag(runs["good"], MLFLOW_GIT_COMMIT, "0123abc")
    register("good")
    run = mlflow.get_run(runs["good"])
    (version,) = MlflowClient().search_model_versions(f"name = '{MODEL_NAME}'")

    digests = {
        f"{tag.value}_digest": entry.dataset.digest
        for entry in run.inputs.dataset_inputs
        for tag in entry.tags
        if tag.key == MLFLOW_DATASET_CONTEXT
    }
    assert digests.keys() == {"training_digest", "validation_digest", "test_digest"}
    assert len(set(digests.values())) == 3
    digests["model_digest"] = hashlib.sha256(_archive(run).read_bytes()).hexdigest()
    logged = {name: run.data.metrics[name] for name in SELECTING_METRICS}
    assert version.tags.keys() == {"val_accuracy", "test_accuracy", evidence.EVIDENCE}
    tags = evidence.from_registry(version.tags)
    measured = {name: float(tags[name]) for name in SELECTING_METRICS}
    assert measured == pytest.approx(logged, abs=1e-4)
    expected = {"run_id": run.info.run_id, "git_commit": "0123abc", **digests}
    expected |= {"validation_images": "200", CHECKSUM: tags[CHECKSUM]}
    right = {name: tags[name] for name in (VALIDATION_RIGHT, TEST_RIGHT)}
    others = {k: v for k, v in tags.items() if k not in SELECTING_METRICS}
    assert others == expected | right
    for metric, tag in (("val_accuracy", VALIDATION_RIGHT), ("test_accuracy", TEST_RIGHT)):
        assert evidence.unpacked(right[tag]).double().mean().item() == measured[metric]
    assert version.run_id == run.info.run_id

    accuracy = f"{logged['test_accuracy']:.2%}"
    assert version.description.startswith(f"cnn for Fashion-MNIST: {accuracy} test accuracy.\n")
    assert "**Metrics.** Selected by val_accuracy, on validation data." in version.description
    assert f"| test_accuracy&emsp; | {logged['test_accuracy']:.4f}&emsp; |" in version.description
    assert "| --- | ---: |" in version.description
    assert "1,800 training images, 200 held out" in version.description
    assert "mistaken as" in version.description


def test_a_run_from_outside_a_repository_has_no_commit_to_tell(
    runs: dict[str, str], register: Callable[..., Registration]
) -> None:
    if MLFLOW_GIT_COMMIT in mlflow.get_run(runs["good"]).data.tags:
        MlflowClient().delete_tag(runs["good"], MLFLOW_GIT_COMMIT)
    register("good")
    (version,) = MlflowClient().search_model_versions(f"name = '{MODEL_NAME}'")
    assert "git_commit" not in evidence.from_registry(version.tags)


def test_registering_twice_registers_nothing_new(register: Callable[..., Registration]) -> None:
    assert register("good").created
    MlflowClient().update_model_version(MODEL_NAME, "1", description="My own words.")
    before = registered()
    again = register("good")
    assert not again.created
    assert (again.version, again.champion) == ("1", "1")
    assert registered() == before
    assert "already registered" in run_register().stdout
    assert registered() == before


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_the_alias_moves_only_to_a_better_version_and_the_previous_one_is_kept(
    register: Callable[..., Registration], metric: str
) -> None:
    register("good", metric)
    assert aliases() == {CHAMPION: "1"}
    worse = register("poor", metric)
    assert (worse.version, worse.champion) == ("2", "1")
    assert "nothing beats" in worse.reason
    assert aliases() == {CHAMPION: "1", CHALLENGER: "2"}
    better = register("best", metric)
    assert (better.version, better.champion) == ("3", "3")
    assert "beats version 1's" in better.reason
    assert aliases() == {CHAMPION: "3", PREVIOUS: "1", CHALLENGER: "2"}


def tags(number: str) -> dict[str, str]:
    return evidence.from_registry(MlflowClient().get_model_version(MODEL_NAME, number).tags)


def test_a_gain_that_may_be_noise_makes_a_challenger_with_the_evidence(
    register: Callable[..., Registration],
) -> None:
    register("good")
    before = registered()
    options = "--experiment", "best", "--min-p", "0"
    for dry_run in (True, False):
        assert registered() == before
        result = run_register(*options, *(["--dry-run"] if dry_run else []))
        assert result.exit_code == 0, result.output
        number = "(new)" if dry_run else "2"
        assert f"{CHAMPION} is version 1: nothing beats its val_accuracy of" in result.stdout
        assert "by enough (min_p 0, min_gain 0)" in result.stdout
        (line,) = (each for each in result.stdout.splitlines() if each.startswith(CHALLENGER))
        assert line.startswith(f"{CHALLENGER} is version {number}: its val_accuracy is 0.")
        assert "better than version 1's; " in line
        assert line.endswith("p is above min_p 0")
    assert aliases() == {CHAMPION: "1", CHALLENGER: "2"}
    assert tags("2")[CONTEST].endswith("not champion, p is above min_p 0")
    images = json.loads(tags("2")[CONTEST_IMAGES])
    gained, lost = images["gained"], images["lost"]
    assert f"{len(gained) + len(lost)} images differ ({len(gained)} gained" in line
    better = (len(gained) - len(lost)) / 200
    difference = float(tags("2")["val_accuracy"]) - float(tags("1")["val_accuracy"])
    assert difference == pytest.approx(better)
    assert CONTEST not in tags("1")

    before = registered()
    assert "already registered" in run_register(*options).stdout
    assert registered() == before


def test_a_challenger_that_passes_the_gate_later_is_only_champion(
    register: Callable[..., Registration],
) -> None:
    register("good")
    register("best", gate=Gate(min_p=0))
    foreseen = register("good", dry_run=True)
    assert (foreseen.version, foreseen.champion) == ("1", "2")
    assert "worse than version 2's" in foreseen.challenge
    assert register("best").champion == "2"
    assert aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    outcome = register("good")
    assert outcome.challenge == foreseen.challenge
    assert outcome.champion == "2"
    assert aliases() == {CHAMPION: "2", PREVIOUS: "1", CHALLENGER: "1"}
    assert tags("2")[CONTEST].endswith(f"became {CHAMPION}")
    registry.rollback(MODEL_NAME)
    assert aliases() == {CHAMPION: "1"}


def test_a_forced_champion_says_so_and_stays(register: Callable[..., Registration]) -> None:
    register("good")
    result = run_register("--experiment", "poor", "--force", "--min-p", "0")
    assert result.exit_code == 0, result.output
    assert f"{CHAMPION} is version 2: forced; its val_accuracy is 0." in result.stdout
    assert aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    assert tags("2")[CONTEST].endswith(f"forced to be {CHAMPION}")
    assert tags("2")[FORCED] == "2"
    assert register("poor").champion == "2"
    # The better one that it was forced over does not come back by itself.
    again = register("good")
    assert (again.version, again.champion) == ("1", "2")
    assert again.reason.startswith("it was forced, and since then nothing beats")
    assert again.challenge.endswith("version 2 was forced")
    assert register("best").champion == "3"


def test_a_champion_without_recorded_predictions_is_measured_once_more(
    register: Callable[..., Registration],
) -> None:
    client = MlflowClient()
    register("poor")
    before = registered()
    # As an earlier version of this project left it.
    source = client.get_model_version(MODEL_NAME, "1").source
    without = (VALIDATION_RIGHT, TEST_RIGHT, CHECKSUM)
    older = {k: v for k, v in tags("1").items() if k not in without}
    client.delete_model_version_tag(MODEL_NAME, "1", evidence.EVIDENCE)
    for name, value in evidence.signed(older, source).items():
        client.set_model_version_tag(MODEL_NAME, "1", name, value)
    assert evidence.is_measured(tags("1"), source)
    challenge = register("best", gate=Gate(min_p=0)).challenge
    assert "images differ" in challenge
    assert tags("1") == evidence.from_registry(before[MODEL_NAME][1][0][1])


def val_accuracies(runs: dict[str, str]) -> dict[str, float]:
    return {name: mlflow.get_run(id_).data.metrics["val_accuracy"] for name, id_ in runs.items()}


def test_only_runs_on_the_champions_images_compete(
    runs: dict[str, str], register: Callable[..., Registration]
) -> None:
    accuracy = val_accuracies(runs)
    assert accuracy["other-split"] > accuracy["poor"]
    register("poor")
    query = "--experiment", "poor,other-split"
    result = run_register(*query)
    assert result.exit_code == 0, result.output
    assert "version 1 already registered" in result.stdout
    assert "not compared: 1 run with val_size 300" in result.stdout
    assert aliases() == {CHAMPION: "1"}

    message = assert_one_line(run_register("--experiment", "other-split"))
    assert "in experiment other-split was measured on the 200 validation images" in message
    assert "1 run with val_size 300" in message
    assert "train one with val_size=200" in message
    assert versions() == {"1": runs["poor"]}


def test_without_a_champion_the_runs_on_most_images_compete(runs: dict[str, str]) -> None:
    accuracy = val_accuracies(runs)
    assert accuracy["best"] > accuracy["other-split"]
    result = run_register("--experiment", ",".join(runs))
    assert result.exit_code == 0, result.output
    assert versions() == {"1": runs["other-split"]}
    better = sum(value > accuracy["other-split"] for value in accuracy.values())
    assert f"better on other images, so not compared: {better} run" in result.stdout
    assert "with val_size 200\n" in result.stdout


def test_versions_that_somebody_registered_by_hand_are_left_alone(
    runs: dict[str, str], register: Callable[..., Registration]
) -> None:
    mlflow.register_model(models.model_uri(mlflow.get_run(runs["best"])), MODEL_NAME)
    outcome = register("poor")
    assert (outcome.version, outcome.champion) == ("2", "2")

    MlflowClient().set_registered_model_alias(MODEL_NAME, CHAMPION, "1")
    assert register("good").champion == "1"


def test_a_champion_whose_model_is_lost_cannot_be_compared_which_the_version_says(
    runs: dict[str, str], register: Callable[..., Registration], archives: dict[str, Path]
) -> None:
    mlflow.register_model(models.model_uri(mlflow.get_run(runs["poor"])), MODEL_NAME)
    MlflowClient().set_registered_model_alias(MODEL_NAME, CHAMPION, "1")
    archives["poor"].unlink()
    outcome = register("good")
    assert (outcome.version, outcome.champion) == ("2", "1")
    assert outcome.challenge == "it cannot be compared with version 1"
    assert tags("2")[CONTEST] == f"{outcome.challenge}: not {CHAMPION}"
    assert register("good", gate=Gate(force=True)).champion == "2"
    assert tags("2")[CONTEST] == "forced; it cannot be compared with version 1"


def test_a_dry_run_changes_nothing_and_says_what_would_happen(
    runs: dict[str, str], register: Callable[..., Registration]
) -> None:
    result = run_register("--dry-run")
    assert result.exit_code == 0, result.output
    assert registered() == {}
    assert result.stdout.startswith(f"Dry run: {MODEL_NAME} version (new) registered, from run ")
    assert runs["good"] in result.stdout
    assert f"{CHAMPION} is version (new): first {CHAMPION}" in result.stdout

    register("good")
    before = registered()
    for experiment, said in (
        ("best", f"{CHAMPION} is version (new): its val_accuracy of"),
        ("poor", f"{CHAMPION} is version 1: nothing beats"),
        ("good", "version 1 already registered"),
    ):
        result = run_register("--dry-run", "--experiment", experiment)
        assert result.exit_code == 0, result.output
        assert said in result.stdout
        assert registered() == before


def test_a_dry_run_verifies_the_model_too(archives: dict[str, Path]) -> None:
    shutil.copy(archives["poor"], archives["good"])
    assert "but the run logged" in assert_one_line(run_register("--dry-run"))


def test_a_rollback_restores_the_previous_champion_for_good(
    runs: dict[str, str], register: Callable[..., Registration]
) -> None:
    register("good")
    register("best")
    result = run_register("--rollback")
    assert result.exit_code == 0, result.output
    assert f"{CHAMPION} is version 1: version 2 was rolled back" in result.stdout
    assert runs["good"] in result.stdout
    assert aliases() == {CHAMPION: "1"}
    assert versions() == {"1": runs["good"], "2": runs["best"]}

    with pytest.raises(RegistryError, match=r"version 2, of run .*, was rolled back"):
        register("best")
    assert register("poor").champion == "1"
    assert aliases() == {CHAMPION: "1", CHALLENGER: "3"}
    # It does not keep the next best run from being registered.
    result = run_register("--experiment", "good,best", "--dry-run")
    assert "version 1 already registered" in result.stdout


def test_there_is_nothing_to_roll_back_to(register: Callable[..., Registration]) -> None:
    message = f"Error: {MODEL_NAME} has no {PREVIOUS} to roll back to\n"
    assert assert_one_line(run_register("--rollback")) == message
    assert not registered()

    register("poor")
    before = registered()
    assert assert_one_line(run_register("--rollback")) == message
    assert registered() == before

    register("good")
    assert run_register("--rollback").exit_code == 0
    before = registered()
    assert assert_one_line(run_register("--rollback")) == message
    assert registered() == before


@pytest.mark.parametrize("option", ["--dry-run", "--force"])
def test_a_rollback_can_be_neither_tried_nor_forced(option: str) -> None:
    result = run_register("--rollback", option)
    assert isinstance(result.exception, SystemExit)
    assert result.exit_code == 2


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("options", [(), ("--dry-run",), ("--rollback",)])
def test_what_cannot_name_a_registered_model_is_refused_in_one_line(
    options: tuple[str, ...],
) -> None:
    for name in (" ", "a/b", "it's", 'a"b', "a:b"):
        message = assert_one_line(run_register("--name", name, *options))
        assert "not a valid name for a registered model" in message


class _PowerCut(BaseException):
    """What no code catches."""


@contextmanager
def power_cut_at(step: str) -> Iterator[None]:
    """Break off where the client is asked to do `step`."""

    def cut(*_arguments: object, **_keywords: object) -> None:
        raise _PowerCut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, step, cut)
        yield


@pytest.mark.parametrize("step", ["update_model_version", "set_registered_model_alias"])
def test_a_registration_that_broke_off_is_completed_by_the_next(
    register: Callable[..., Registration], step: str
) -> None:
    register("poor")
    with pytest.raises(_PowerCut), power_cut_at(step):
        register("good")
    assert len(versions()) == 2
    assert aliases() == {CHAMPION: "1"}

    repaired = register("good")
    assert (repaired.version, repaired.created, repaired.champion) == ("2", False, "2")
    assert aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    assert all(description for _, _, description in registered()[MODEL_NAME][1])


def test_a_champion_that_was_never_named_is_named_by_the_next(
    register: Callable[..., Registration],
) -> None:
    with pytest.raises(_PowerCut), power_cut_at("set_registered_model_alias"):
        register("good")
    assert aliases() == {}
    # Even where that registers a worse one.
    assert register("poor").champion == "1"


@pytest.fixture
def make_version(runs: dict[str, str]) -> Callable[..., str]:
    """Return a function that makes a version with a val_accuracy on certain images."""
    client = MlflowClient()
    client.create_registered_model(MODEL_NAME)
    source = models.model_uri(mlflow.get_run(runs["good"]))

    def make(val_accuracy: float) -> str:
        tags = {"val_accuracy": str(val_accuracy), "validation_digest": "the same"}
        tags = evidence.signed(tags, source)
        version = client.create_model_version(MODEL_NAME, source, tags=tags)
        return str(version.version)

    return make


def promote() -> str:
    number, _ = registry.promote(MlflowClient(), MODEL_NAME, "val_accuracy", UNTESTED)
    assert aliases()[CHAMPION] == number
    return number


def test_tags_of_one_version_count_for_nothing_at_another(
    register: Callable[..., Registration],
) -> None:
    client = MlflowClient()
    register("good")
    client.delete_registered_model_alias(MODEL_NAME, CHAMPION)
    register("poor")
    better = client.get_model_version(MODEL_NAME, "1").tags
    for key, value in better.items():
        client.set_model_version_tag(MODEL_NAME, "2", key, value)
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, "1")
    assert "unverified, so not compared: version 2 " in register("good").reason


def test_a_champion_with_tags_that_do_not_count_is_measured_again(
    runs: dict[str, str], register: Callable[..., Registration]
) -> None:
    client = MlflowClient()
    register("poor")
    before = registered()
    # As an earlier version of this project left it, and then changed by hand.
    client.delete_model_version_tag(MODEL_NAME, "1", evidence.EVIDENCE)
    client.set_model_version_tag(MODEL_NAME, "1", "val_accuracy", "0.9999")
    assert register("good", dry_run=True).champion is None
    assert registered() != before
    outcome = register("poor")
    assert (outcome.version, outcome.champion) == ("1", "1")
    assert registered() == before
    assert register("good").champion == "2"


def test_a_better_version_that_appears_while_the_alias_moves_becomes_champion(
    make_version: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_version(0.7)
    late: list[str] = []
    set_alias = MlflowClient.set_registered_model_alias

    def set_alias_late(client: MlflowClient, name: str, alias: str, version: str) -> None:
        if not late:  # another process registers, and reads the alias before it is set
            late.append(make_version(0.8))
        set_alias(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_alias_late)
    assert promote() == late[0]


def test_a_version_that_was_rolled_back_does_not_return_by_two_promotions(
    make_version: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = make_version(0.7), make_version(0.8)
    MlflowClient().set_registered_model_alias(MODEL_NAME, CHAMPION, good)
    set_alias = MlflowClient.set_registered_model_alias
    others = [promote, lambda: registry.rollback(MODEL_NAME)]

    def set_alias_late(client: MlflowClient, name: str, alias: str, version: str) -> None:
        if alias == CHAMPION and others:  # others promote the same version, and roll it back
            waiting, others[:] = others[:], []
            for act in waiting:
                act()
            assert aliases() == {CHAMPION: good}
        set_alias(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_alias_late)
    assert promote() == good
    assert MlflowClient().get_model_version(MODEL_NAME, bad).tags["rolled_back"] == "true"


def test_a_version_that_a_promotion_sets_during_its_rollback_does_not_stay(
    make_version: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = make_version(0.7), make_version(0.8)
    MlflowClient().set_registered_model_alias(MODEL_NAME, CHAMPION, good)
    assert promote() == bad
    set_alias = MlflowClient.set_registered_model_alias
    stale = [bad]

    def set_alias_early(client: MlflowClient, name: str, alias: str, version: str) -> None:
        set_alias(client, name, alias, version)
        while stale:  # another process read the versions before this one was marked
            set_alias(client, name, CHAMPION, stale.pop())

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_alias_early)
    assert registry.rollback(MODEL_NAME).champion == good
    assert aliases() == {CHAMPION: good}


def test_a_rollback_that_broke_off_in_between_is_completed_by_a_registration(
    make_version: Callable[..., str],
) -> None:
    good, bad = make_version(0.7), make_version(0.8)
    MlflowClient().set_registered_model_alias(MODEL_NAME, CHAMPION, good)
    assert promote() == bad
    with pytest.raises(_PowerCut), power_cut_at("set_registered_model_alias"):
        registry.rollback(MODEL_NAME)
    assert aliases()[CHAMPION] == bad
    assert promote() == good


def test_a_rollback_that_broke_off_does_not_bar_the_restored_champion(
    register: Callable[..., Registration],
) -> None:
    register("poor")
    register("good")
    with pytest.raises(_PowerCut), power_cut_at("delete_registered_model_alias"):
        registry.rollback(MODEL_NAME)
    assert aliases()[CHAMPION] == "1"
    with pytest.raises(RegistryError, match="to roll back to"):
        registry.rollback(MODEL_NAME)
    assert aliases()[CHAMPION] == "1"
    assert register("poor").champion == "1"


def test_an_alias_that_another_process_adds_at_the_same_moment_is_no_error(
    register: Callable[..., Registration], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(_PowerCut), power_cut_at("set_registered_model_alias"):
        register("poor")
    set_alias = MlflowClient.set_registered_model_alias
    others = iter(["1"])

    def set_after_another(client: MlflowClient, name: str, alias: str, version: str) -> None:
        for other in others:
            set_alias(client, name, alias, other)
            raise MlflowException("UNIQUE constraint failed")
        set_alias(client, name, alias, version)

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_after_another)
    assert register("good").champion == "2"
    assert aliases() == {CHAMPION: "2"}


_barrier: Barrier
_small: Dataset


def _join(barrier: Barrier, uri: str, dataset: bytes) -> None:
    """Prepare a process of its own for `_register_at_once`."""
    global _barrier, _small
    _barrier, _small = barrier, pickle.loads(dataset)
    mlflow.set_tracking_uri(uri)
    torch.set_num_threads(1)


def _register_at_once(name: str, experiment: str) -> Registration:
    _barrier.wait(timeout=HANG_SECONDS)
    query = Query(experiments=[experiment], models=["cnn"])
    return registry.register(name, query, _small, gate=UNTESTED)


def test_two_registrations_at_once_lose_no_version_and_leave_the_better_champion(
    runs: dict[str, str], small: Dataset, rounds: int
) -> None:
    context = multiprocessing.get_context("forkserver")  # that of tests/processes.py
    arguments = (context.Barrier(2), mlflow.get_tracking_uri(), pickle.dumps(small))
    with ProcessPoolExecutor(2, context, _join, arguments) as pool:
        for attempt in range(rounds):
            name = f"{MODEL_NAME}-{attempt}"
            pair = ("poor", "good") if attempt % 2 else ("good", "poor")
            outcomes = list(pool.map(_register_at_once, [name, name], pair))
            assert all(outcome.created for outcome in outcomes)
            assert sorted(versions(name).values()) == sorted(runs[run] for run in pair)
            champion = MlflowClient().get_model_version_by_alias(name, CHAMPION)
            assert champion.run_id == runs["good"]

        for attempt in range(rounds // 2):
            name = f"{MODEL_NAME}-one-run-{attempt}"
            outcomes = list(pool.map(_register_at_once, [name, name], ("good", "good")))
            assert sorted(outcome.created for outcome in outcomes) == [False, True]
            assert list(versions(name).values()) == [runs["good"]]
            assert list(aliases(name)) == [CHAMPION]
