"""What the tests share: the real dataset, a part of it, an empty tracking store, and a server."""

import functools
import os
import secrets
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow
import mlflow.store.db.utils
import pytest
import sqlalchemy
from click.testing import CliRunner, Result
from filelock import FileLock

from deploy import server
from fashion.analysis import drawing
from fashion.data import sources
from fashion.data.dataset import Dataset
from fashion.data.sources import load_dataset
from fashion.settings.experiment import Architecture, Experiment, Recipe
from fashion.settings.task import FASHION_MNIST
from fashion.tracking import training
from fashion.training.kernels.compile import KernelError, library
from tests import blank
from tests.conftest import ROOT, TrackingServer, free_port, head
from tests.processes import EMPTY_STORE, Process

# The tracking server's, as if a proxy stood in front of it.
PUBLIC_NAME = "mlflow.example.org"


@pytest.fixture(params=["few", pytest.param("many", marks=pytest.mark.slow(seconds=150))])
def rounds(request: pytest.FixtureRequest) -> int:
    """How often to try a fault that strikes at random."""
    return 2 if request.param == "few" else request.config.getoption("rounds")


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    """All 70,000 real images."""
    return load_dataset()


@pytest.fixture(scope="session")
def small(dataset: Dataset) -> Dataset:
    """The first 2,000 training and 500 test images: enough to learn something in a second."""
    return Dataset(
        train=head(dataset.train, 2_000),
        test=head(dataset.test, 500),
        directory=dataset.directory,
    )


@pytest.fixture(scope="session", autouse=True)
def _blank_figures() -> Iterator[None]:
    """Trainings draw no figures, neither here nor in forked processes; test_training.py's do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "draw", blank.draw)
        patch.setattr(drawing, "start", lambda: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _fast_stores() -> Iterator[None]:
    """No store of a test must outlive a power failure: waiting for disks takes half of a test."""

    def connected(connection: Any, _: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous = OFF")

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", connected)
    yield
    sqlalchemy.event.remove(sqlalchemy.Engine, "connect", connected)


@pytest.fixture(scope="session")
def native_kernels() -> None:
    """Skip what tests the native kernels on a machine that cannot compile them."""
    try:
        library()
    except KernelError as error:
        pytest.skip(f"native kernels were not tried: {error}")


@pytest.fixture(scope="session")
def _one_schema() -> Iterator[None]:
    """MLflow reads its 67 migrations for each database that it opens: here once for all."""
    with pytest.MonkeyPatch.context() as patch:
        latest = mlflow.store.db.utils._get_latest_schema_revision
        patch.setattr(mlflow.store.db.utils, latest.__name__, functools.cache(latest))
        yield


@pytest.fixture(scope="session")
def _empty_store(
    _one_schema: None, tmp_path_factory: pytest.TempPathFactory, worker_id: str
) -> Path:
    """A database with MLflow's tables and no runs; making one takes seconds, copying it none."""
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":  # one for all workers, whose folders lie side by side
        folder = folder.parent
    path = folder / "empty.db"
    with FileLock(folder / "empty.lock"):
        if not path.exists():
            mlflow.set_tracking_uri(f"sqlite:///{path}")
            mlflow.search_experiments()
    os.environ[EMPTY_STORE] = str(path)
    return path


@pytest.fixture
def store(
    _empty_store: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Path]:
    """An empty tracking store in a directory of its own, which is the working directory too."""
    shutil.copy(_empty_store, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("FASHION_STATE_DIR", str(tmp_path_factory.mktemp("state")))
    mlflow.set_tracking_uri(uri)
    # The copied default experiment points to where the template was made.
    mlflow.set_experiment("test")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "test")
    # Commands put variables there too: a server's user name, for example.
    with mock.patch.dict(os.environ):
        yield tmp_path
    while mlflow.active_run():
        mlflow.end_run()


@pytest.fixture
def train_small(store: Path, small: Dataset) -> Callable[..., str]:
    """Return a function that trains a model on the small dataset and returns the run's id."""

    def train(model: str = "baseline", **changes: object) -> str:
        settings = {"epochs": 1, "batch_size": 32, "lr": 0.1, "seed": 42, "val_size": 200} | changes
        val_size, tta = settings.pop("val_size"), settings.pop("tta", False)
        architecture = Architecture(**settings.pop("architecture", {}))
        experiment = Experiment(
            model,
            architecture=architecture,
            val_size=val_size,
            device="cpu",
            recipe=Recipe(**settings),
            tta=tta,
        )
        return training.train(experiment, small)

    return train


@pytest.fixture
def invoke(store: Path, small: Dataset, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs a command in this process; Fashion-MNIST is the small dataset."""

    def load(data_dir: str = "", data: str = FASHION_MNIST.name, *others: Any) -> Dataset:
        return small if data == FASHION_MNIST.name else load_dataset(data_dir, data, *others)

    monkeypatch.setattr(sources, "load_dataset", load)
    return CliRunner().invoke


@pytest.fixture
def start(dataset: Dataset, store: Path) -> Iterator[Callable[..., Process]]:
    """Return a function that starts an entry point in a process of its own.

    What still runs at the end of the test is killed.
    """
    processes = []

    def start(entry_point: str, *arguments: str, **options: Any) -> Process:
        processes.append(Process(f"entrypoints.{entry_point}", *arguments, cwd=store, **options))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.fixture
def command(
    start: Callable[..., Process], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs an entry point to its end, in a process of its own."""

    def run(entry_point: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        stderr = tmp_path_factory.mktemp("stderr") / "stderr"
        process = start(entry_point, *arguments, stderr=stderr)
        output = process.communicate()
        return subprocess.CompletedProcess(
            (entry_point, *arguments), process.returncode, output, stderr.read_text()
        )

    return run


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    """The server of `deploy/server.py`, as its administrator sees it; one for all tests."""
    if server.postgresql_programs() is None:
        pytest.skip("PostgreSQL is not installed")
    port = free_port()
    password = secrets.token_urlsafe()
    log = tmp_path_factory.mktemp("server") / "server.log"
    with log.open("wb") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.server", "--port", str(port)],
            env={
                **os.environ,
                server.ADMIN_PASSWORD: password,
                "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:*,{PUBLIC_NAME}",
                "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"https://{PUBLIC_NAME}",
            },
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
        )
    with process:
        # A line once it is healthy, or the end of the file when it could not start.
        ready = process.stdout.readline().strip()
        try:
            assert ready, log.read_text(errors="replace")
            yield TrackingServer(ready.removeprefix("Ready: "), "admin", password)
        finally:
            process.terminate()
