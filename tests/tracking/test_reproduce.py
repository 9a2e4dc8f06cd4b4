"""`reproduce` trains a model again, at the commit of its run, and compares the weights."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import mlflow
import psutil
import pytest
from click.testing import Result
from mlflow import MlflowClient
from mlflow.entities import Run

from entrypoints.reproduce import reproduce
from fashion.data.dataset import Dataset
from fashion.settings.experiment import Experiment
from fashion.settings.tags import CHANGES_TAG, CODE_TAG, REPRODUCED_TAG
from fashion.tracking import answers, checkout, configuration, models, reproduction
from tests.conftest import HANG_SECONDS, ROOT, assert_one_line

COMMIT_TAG = "mlflow.source.git.commit"
# `entrypoints.train` of the small repository: what it "trains" is a tracking store that has been
# prepared. It notes how it was called.
TRAIN = """
import json, os, pathlib, shutil, sys
pathlib.Path(os.environ["CALLED"]).write_text(json.dumps([sys.argv[1:], dict(os.environ)]))
shutil.copy(os.environ["PREPARED"], os.environ["MLFLOW_TRACKING_URI"].removeprefix("sqlite:///"))
print("Training")
print("Logged as run 1\\nadvice")
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of a project with one commit, which stands in for this project's."""
    monkeypatch.setattr(checkout, "ROOT", tmp_path / "repository")
    (checkout.ROOT / "entrypoints").mkdir(parents=True)
    git("init", "--quiet")
    (checkout.ROOT / "uv.lock").touch()
    commit_training(TRAIN)
    return checkout.ROOT


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def run_reproduce(
    invoke: Callable[..., Result], repository: Path, dataset: Dataset, temporary: Path
) -> Callable[..., Result]:
    return lambda uri: invoke(reproduce, ["--model-uri", uri, "--data-dir", str(dataset.directory)])


@pytest.fixture
def prepare(store: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Return a function after which `TRAIN` gives the one run that the store has now.

    It returns the file in which `TRAIN` notes how it was called.
    """
    # Commits are trained in this environment.
    monkeypatch.setattr(checkout, "install", lambda *_: sys.executable)

    def prepare() -> Path:
        monkeypatch.setenv("PREPARED", str(shutil.copy(store / "mlflow.db", store / "prepared.db")))
        monkeypatch.setenv("CALLED", str(store / "called.json"))
        return store / "called.json"

    return prepare


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(
        ["git", *identity, *arguments],
        cwd=checkout.ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def commit_training(text: str) -> None:
    (checkout.ROOT / "entrypoints" / "train.py").write_text(text)
    git("add", ".")
    git("commit", "--quiet", "--message", "train")


def tag_commit(run_id: str, commit: str) -> None:
    MlflowClient().set_tag(run_id, COMMIT_TAG, commit)


def plan(run_id: str) -> reproduction.Plan:
    return reproduction.plan(answers.find(run_id))


def logged() -> Run:
    """Return the run that the comparison was logged to."""
    (run,) = mlflow.search_runs(filter_string="run_name LIKE 'reproduce: %'", output_format="list")
    return mlflow.get_run(run.info.run_id)


def test_a_version_is_reproduced_bit_for_bit(
    train_small: Callable[..., str],
    run_reproduce: Callable[..., Result],
    prepare: Callable[[], Path],
    repository: Path,
    temporary: Path,
) -> None:
    run_id = train_small()
    prepare()
    tag_commit(run_id, git("rev-parse", "HEAD"))
    mlflow.register_model(models.model_uri(mlflow.get_run(run_id)), "clothes")
    # What is not committed is not used.
    (repository / "entrypoints" / "train.py").write_text("raise SystemExit('changed')")
    before = sorted(repository.rglob("*"))

    result = run_reproduce("models:/clothes/1")
    assert result.exit_code == 0, result.output
    assert "  Training\n" in result.stdout
    assert "advice" not in result.stdout
    assert "reproduced bit for bit: 4 tensors" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    run = logged()
    assert run.info.run_name == "reproduce: clothes version 1"
    assert run.info.run_id in result.stderr
    assert run.data.tags[REPRODUCED_TAG] == "true"
    assert run.data.metrics["max_weight_difference"] == 0
    assert "reproduced bit for bit" in run.data.tags["mlflow.note.content"]
    assert "model" not in run.data.tags  # it is no training run
    linked = [f"models:/{each.model_id}" for each in run.inputs.model_inputs]
    assert linked == [models.model_uri(mlflow.get_run(run_id))]
    assert sorted(repository.rglob("*")) == before
    assert not list(temporary.glob(f"{checkout.PREFIX}*"))  # torch has a cache beside it


def test_other_weights_are_not_reproduced(
    train_small: Callable[..., str],
    run_reproduce: Callable[..., Result],
    prepare: Callable[[], Path],
) -> None:
    train_small(seed=7)
    prepare()
    run_id = train_small()
    tag_commit(run_id, git("rev-parse", "HEAD"))
    for name in ("cpu_capability", CODE_TAG):
        MlflowClient().set_tag(run_id, name, "other")

    result = run_reproduce(run_id)
    assert result.exit_code == 1
    assert "not reproduced: 4 of 4 tensors differ, by up to" in result.stderr.splitlines()[-1]
    for name in ("cpu_capability", CODE_TAG):
        assert f"\n{name} " in result.stdout
    assert "\ntrain_digest " not in result.stdout
    run = logged()
    assert run.info.status == "FINISHED"
    assert run.data.tags[REPRODUCED_TAG] == "false"
    assert run.data.metrics["differing_tensors"] == 4
    assert run.data.metrics["max_weight_difference"] > 0


def test_it_is_trained_with_the_settings_and_threads_of_its_run_and_nothing_of_this_process(
    train_small: Callable[..., str],
    run_reproduce: Callable[..., Result],
    prepare: Callable[[], Path],
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run_id = train_small(augment=("flip", "shift"), momentum=0.9, nesterov=True)
    called = prepare()
    tag_commit(run_id, git("rev-parse", "HEAD"))
    MlflowClient().set_tag(run_id, "threads", "3")
    experiment = mlflow.get_experiment_by_name("test")
    launched = MlflowClient().create_run(experiment.experiment_id, run_name="bold-shrew-123")
    monkeypatch.setenv("MLFLOW_RUN_ID", launched.info.run_id)  # as `mlflow run` does
    monkeypatch.setenv("PYTHONPATH", "elsewhere")

    assert run_reproduce(run_id).exit_code == 0
    assert logged().info.run_id == launched.info.run_id
    arguments, variables = json.loads(called.read_text())
    options = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(arguments[::2], arguments[1::2], strict=True)
    }
    assert options.pop("data_dir") == str(dataset.directory)
    settings = Experiment.from_options(options).to_dict()
    assert settings == Experiment.from_options(configuration.read(f"runs:/{run_id}")).to_dict()
    assert settings["augment"] == "flip,shift"
    assert settings["nesterov"]
    assert variables["OMP_NUM_THREADS"] == "3"
    assert not variables.keys() & {"MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "PYTHONPATH"}
    for name in ("MLFLOW_TRACKING_URI", "FASHION_STATE_DIR", "TMPDIR"):
        assert variables[name] != os.environ.get(name)
        assert checkout.PREFIX in variables[name]


@pytest.mark.usefixtures("prepare")
def test_a_training_that_fails_is_one_line(
    train_small: Callable[..., str], run_reproduce: Callable[..., Result], temporary: Path
) -> None:
    run_id = train_small()
    commit_training("raise SystemExit('Error: no such option --epochs')")
    tag_commit(run_id, git("rev-parse", "HEAD"))
    result = run_reproduce(run_id)
    assert result.exit_code == 1
    assert result.stderr == "Error: cannot train again: no such option --epochs\n"
    assert len(mlflow.search_runs(output_format="list")) == 1
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("commit", "problem"),
    [
        ("", "has recorded no git commit"),
        ("0" * 40, f"commit {'0' * 40} is not in the repository"),
        ("HEAD", "it has no uv.lock"),
    ],
)
def test_a_run_whose_commit_cannot_be_trained_is_one_line(
    train_small: Callable[..., str],
    run_reproduce: Callable[..., Result],
    temporary: Path,
    commit: str,
    problem: str,
) -> None:
    run_id = train_small()
    git("rm", "--quiet", "uv.lock")
    git("commit", "--quiet", "--message", "no lock")
    tag_commit(run_id, commit)
    assert problem in assert_one_line(run_reproduce(run_id))
    assert len(mlflow.search_runs(output_format="list")) == 1
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("models:/other@champion", "models:/other@champion does not exist"),
        ("0123abcd", "0123abcd is no run"),
        ("nowhere", "nowhere cannot be loaded"),
    ],
)
def test_a_model_that_does_not_exist_is_one_line(
    run_reproduce: Callable[..., Result], uri: str, problem: str
) -> None:
    assert problem in assert_one_line(run_reproduce(uri))
    assert not mlflow.search_runs(output_format="list")


def test_a_model_of_no_known_run_is_one_line(
    train_small: Callable[..., str], run_reproduce: Callable[..., Result], store: Path
) -> None:
    uri = models.model_uri(mlflow.get_run(train_small()))
    folder = mlflow.artifacts.download_artifacts(uri, dst_path=str(store / "copy"))
    assert "it is not the model of a training run" in assert_one_line(run_reproduce(folder))


@pytest.mark.parametrize(
    ("missing", "problem"),
    [("git", "git is not installed"), ("uv", "uv is not on PATH"), (".git", "no git repository")],
)
def test_a_machine_that_lacks_something_is_told_what(
    repository: Path, monkeypatch: pytest.MonkeyPatch, missing: str, problem: str
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else which(name))
    commit = git("rev-parse", "HEAD")
    if missing == ".git":
        shutil.rmtree(repository / missing)
        monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(repository.parent))
    with pytest.raises(checkout.CheckoutError, match=problem):
        checkout.check(commit)


def test_what_prevents_equal_weights_is_said_before(
    train_small: Callable[..., str], repository: Path
) -> None:
    run_id = train_small()
    tag_commit(run_id, git("rev-parse", "HEAD"))
    assert plan(run_id).remarks == []
    MlflowClient().set_tag(run_id, CHANGES_TAG, "after epoch 1: torch_version was 1, is 2")
    (remark,) = plan(run_id).remarks
    assert "resumed with changes (after epoch 1: torch_version was 1, is 2)" in remark


def test_the_lock_is_not_installed_if_it_is_damaged(repository: Path, temporary: Path) -> None:
    (repository / "uv.lock").write_text("damaged")
    (repository / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\n')
    git("add", ".")
    git("commit", "--quiet", "--message", "damaged")
    with (
        pytest.raises(checkout.CheckoutError, match=r"^cannot install the lock of the commit: "),
        checkout.checked_out(git("rev-parse", "HEAD")) as folder,
    ):
        checkout.install(folder, "")
    assert not list(temporary.iterdir())


def test_an_interrupted_command_ends_before_its_folder_is_deleted(
    repository: Path, temporary: Path
) -> None:
    def interrupt(line: str) -> None:
        pids.append(int(line))
        raise KeyboardInterrupt

    pids: list[int] = []
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    with (
        pytest.raises(KeyboardInterrupt),
        checkout.checked_out(git("rev-parse", "HEAD")) as folder,
    ):
        checkout.run("wait", [sys.executable, "-c", code], folder, os.environ, interrupt)
    assert not psutil.pid_exists(pids[0])
    assert not list(temporary.iterdir())


def test_an_interruption_while_it_is_deleted_leaves_nothing(
    repository: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    commit = git("rev-parse", "HEAD")
    with pytest.raises(KeyboardInterrupt), checkout.checked_out(commit):
        monkeypatch.setattr(shutil, "rmtree", interrupted)
    assert not list(temporary.iterdir())


@pytest.mark.slow(seconds=200)
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
def test_a_clone_reproduces_what_it_has_trained(
    store: Path, dataset: Dataset, temporary: Path
) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no clone")
    clone = store / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    settings = {"FASHION_DATA_DIR": str(dataset.directory), "TMPDIR": str(temporary)}

    def start(entry_point: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", f"entrypoints.{entry_point}", *arguments],
            cwd=clone,
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def lines_until(process: subprocess.Popen[str], beginning: str) -> list[str]:
        printed: list[str] = []
        while not printed or not printed[-1].startswith(beginning):
            printed.append(process.stdout.readline())
            assert printed[-1], printed
        return printed

    with start("train", "--model", "baseline", "--epochs", "1") as training:
        assert training.communicate(timeout=HANG_SECONDS)[0]
    (run,) = mlflow.search_runs(output_format="list")
    mlflow.register_model(models.model_uri(run), "clothes")
    git_folder = sorted((clone / ".git").rglob("*"))

    # Stopped while it trains, it ends the training and deletes its environment.
    with start("reproduce", "--model-uri", "models:/clothes/1") as interrupted:
        lines_until(interrupted, "  Training baseline")
        interrupted.send_signal(signal.SIGTERM)
        said, _ = interrupted.communicate(timeout=HANG_SECONDS)
    assert interrupted.returncode == 128 + signal.SIGTERM
    assert "Stopped by SIGTERM" in said.splitlines()
    assert not list(temporary.glob(f"{checkout.PREFIX}*"))
    assert len(mlflow.search_runs(output_format="list")) == 1

    with start("reproduce", "--model-uri", "models:/clothes/1") as reproduced:
        said, _ = reproduced.communicate(timeout=HANG_SECONDS)
    assert reproduced.returncode == 0, said
    assert "reproduced bit for bit" in said
    assert "what differs" not in said
    assert not list(temporary.glob(f"{checkout.PREFIX}*"))
    assert sorted((clone / ".git").rglob("*")) == git_folder
    assert logged().data.tags[REPRODUCED_TAG] == "true"
