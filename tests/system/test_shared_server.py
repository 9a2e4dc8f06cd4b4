"""A team's server: two working copies at once, accounts, and no secret for others to read."""

import base64
import json
import os
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from fashion.data.dataset import Dataset
from fashion.tracking import models, registry
from fashion.tracking.query import Query
from fashion.training import evaluation
from tests.conftest import HANG_SECONDS, ROOT, TrackingServer
from tests.fixtures import PUBLIC_NAME
from tests.processes import Process

EXPERIMENT = "fashion-mnist"
MODEL = "fashion-mnist-baseline"
# In the address of the working copies' git remote, as some checkouts have it.
TOKEN = secrets.token_hex()


def request(
    server: TrackingServer, path: str, body: object = None, **headers: str
) -> urllib.request.Request:
    """Return a request of that account to the server's REST API; a POST if it has a body."""
    account = base64.b64encode(f"{server.username}:{server.password}".encode()).decode()
    headers |= {"Authorization": f"Basic {account}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.Request(f"{server.url}/api/2.0/mlflow/{path}", data, headers)


def status(answer: urllib.request.Request | str) -> int:
    try:
        with urllib.request.urlopen(answer) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def environment(**variables: str) -> dict[str, str]:
    """Return a user's environment, with no setting of MLflow but these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", **variables}


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", folder, *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass(frozen=True)
class WorkingCopy:
    """A member's clone of this project, and what `mlflow run` in it printed."""

    member: TrackingServer
    folder: Path
    commit: str
    seed: str
    exit_code: int
    output: str


@pytest.fixture(scope="module")
def members(tracking_server: TrackingServer) -> list[TrackingServer]:
    """Two accounts, of which the first has made the team's experiment."""
    members = [
        TrackingServer(tracking_server.url, name, secrets.token_hex()) for name in ("alice", "bob")
    ]
    for member in members:
        account = {"username": member.username, "password": member.password}
        assert status(request(tracking_server, "users/create", account)) == 200
    assert status(request(members[0], "experiments/create", {"name": EXPERIMENT})) == 200
    return members


@pytest.fixture(scope="module")
def copies(
    members: list[TrackingServer], dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> list[WorkingCopy]:
    """Both members' working copies, at different commits, after both have trained at once."""
    alice, bob = members
    # Bob has his password in the address, and MLflow prints the addresses of runs.
    bobs_uri = bob.url.replace("://", f"://{bob.username}:{bob.password}@")
    settings = [
        alice.env,
        {"MLFLOW_TRACKING_URI": bobs_uri, "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"},
    ]
    started = []
    for seed, (member, variables) in enumerate(zip(members, settings, strict=True)):
        folder = tmp_path_factory.mktemp(member.username) / "fashion"
        git(ROOT, "clone", "--quiet", ".", str(folder))
        git(folder, "remote", "set-url", "origin", f"https://{TOKEN}@git.example.org/fashion.git")
        git(folder, "commit", "--quiet", "--allow-empty", "--message", f"Of {member.username}")
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "run", ".", "-e", "train"),
                *("--env-manager", "local", "--experiment-name", EXPERIMENT),
                *("-P", "model=baseline", "-P", "epochs=1", "-P", f"seed={seed}"),
            ],
            env=environment(**variables, FASHION_DATA_DIR=str(dataset.directory)),
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append((member, folder, str(seed), process))
    done = []
    for member, folder, seed, process in started:
        output, _ = process.communicate(timeout=HANG_SECONDS)
        commit = git(folder, "rev-parse", "HEAD")
        done.append(WorkingCopy(member, folder, commit, seed, process.returncode, output))
    return done


def act_as(member: TrackingServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in member.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def client(
    members: list[TrackingServer], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MlflowClient]:
    """MLflow in this process, as Alice uses it."""
    before = mlflow.get_tracking_uri()
    act_as(members[0], monkeypatch)
    mlflow.set_tracking_uri(members[0].url)
    yield MlflowClient()
    mlflow.set_tracking_uri(before)


def runs_of(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return client.search_runs([experiment.experiment_id])


def test_two_working_copies_log_to_one_experiment_at_once(
    copies: list[WorkingCopy], client: MlflowClient
) -> None:
    for copy in copies:
        assert copy.exit_code == 0, copy.output[-3000:]
    runs = {run.data.tags["mlflow.source.git.commit"]: run for run in runs_of(client)}
    assert runs.keys() == {copy.commit for copy in copies}
    assert len(runs) == 2
    for copy in copies:
        run = runs[copy.commit]
        assert run.info.status == "FINISHED"
        assert run.data.params["seed"] == copy.seed
        assert run.data.metrics.keys() >= {
            *("train_loss", "train_accuracy", "val_loss", "val_accuracy"),
            *("test_loss", "test_accuracy", "train_seconds"),
        }
        assert {artifact.path for artifact in client.list_artifacts(run.info.run_id)} >= {
            *("confusion_matrix.csv", "confusion_matrix.png", "learning_curves.png"),
            *("per_class.json", "predictions.png"),
        }


def test_one_registers_the_best_and_the_other_loads_it_by_name(
    copies: list[WorkingCopy],
    client: MlflowClient,
    dataset: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    alice, bob = (copy.member for copy in copies)
    act_as(bob, monkeypatch)
    registry.register(MODEL, Query(experiments=[EXPERIMENT], models=["baseline"]), dataset)
    act_as(alice, monkeypatch)
    best = max(runs_of(client), key=lambda run: run.data.metrics["val_accuracy"])
    assert client.get_model_version_by_alias(MODEL, registry.CHAMPION).run_id == best.info.run_id
    model = models.load(f"models:/{MODEL}@{registry.CHAMPION}")
    accuracy = evaluation.evaluate(model, dataset.test).accuracy
    assert accuracy == pytest.approx(best.data.metrics["test_accuracy"], abs=1e-6)


def test_only_who_made_an_experiment_deletes_it(
    members: list[TrackingServer], client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = members
    experiment_id = client.create_experiment("of Alice")
    act_as(bob, monkeypatch)
    with pytest.raises(MlflowException, match="Permission denied"):
        client.delete_experiment(experiment_id)
    act_as(alice, monkeypatch)
    client.delete_experiment(experiment_id)


def test_no_secret_is_stored_or_printed(
    copies: list[WorkingCopy], client: MlflowClient, tmp_path: Path
) -> None:
    kept = [copy.output for copy in copies]
    for run in runs_of(client):
        kept.append(str(run.to_dictionary()))
        run_id = run.info.run_id
        mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(tmp_path / run_id))
        for model in run.outputs.model_outputs:
            kept.append(str(client.get_logged_model(model.model_id).to_dictionary()))
            mlflow.artifacts.download_artifacts(
                f"models:/{model.model_id}", dst_path=str(tmp_path / model.model_id)
            )
    haystack = "\n".join(kept).encode()
    haystack += b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    # Were these missing, the secrets might be where we did not look.
    assert copies[0].commit.encode() in haystack
    assert b"https://git.example.org/fashion.git" in haystack
    assert b"loader_module: " in haystack
    for secret in (TOKEN, *(copy.member.password for copy in copies)):
        assert secret.encode() not in haystack


@pytest.mark.parametrize("case", ["no account", "wrong password", "wrong password in the address"])
def test_who_is_not_let_in_learns_it_in_one_line(
    tracking_server: TrackingServer, dataset: Dataset, tmp_path: Path, case: str
) -> None:
    password = secrets.token_hex()
    wrong = TrackingServer(tracking_server.url, "admin", password)
    variables = {
        "no account": {"MLFLOW_TRACKING_URI": wrong.url},
        "wrong password": wrong.env,
        "wrong password in the address": {
            "MLFLOW_TRACKING_URI": wrong.url.replace("://", f"://admin:{password}@")
        },
    }[case]
    # A home of its own: MLflow reads credentials there.
    variables |= {"HOME": str(tmp_path), "FASHION_DATA_DIR": str(dataset.directory)}
    runs = request(tracking_server, "runs/search", {"experiment_ids": ["0"]})
    stderr = tmp_path / "stderr"
    process = Process(
        *("entrypoints.train", "--model", "baseline", "--epochs", "1"),
        cwd=tmp_path,
        env=environment(**variables),
        stderr=stderr,
    )
    assert process.communicate() == ""
    assert process.returncode == 1
    message = stderr.read_text()
    assert len(message.splitlines()) == 1
    assert message.startswith("Error: ")
    assert "set MLFLOW_TRACKING_USERNAME" in message
    assert password not in message
    with urllib.request.urlopen(runs) as response:
        assert json.load(response).get("runs", []) == []


def test_the_server_answers_nobody_without_an_account(tracking_server: TrackingServer) -> None:
    assert status(tracking_server.url) == 401
    assert status(f"{tracking_server.url}/api/2.0/mlflow-artifacts/artifacts") == 401
    assert status(f"{tracking_server.url}/health") == 200


def test_browsers_get_in_by_the_names_of_the_server_alone(tracking_server: TrackingServer) -> None:
    def experiments(**headers: str) -> int:
        body = {"max_results": 1}
        return status(request(tracking_server, "experiments/search", body, **headers))

    assert experiments(Host=PUBLIC_NAME, Origin=f"https://{PUBLIC_NAME}") == 200
    assert experiments(Host="elsewhere.example.org") == 403
    assert experiments(Origin="https://elsewhere.example.org") == 403
