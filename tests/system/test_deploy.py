"""What deploy/ holds: the server's script, the containers' settings, and the Kubernetes job."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import psutil
import pytest
import yaml
from click.testing import CliRunner
from mlflow.projects import _parse_kubernetes_config, kubernetes, load_project
from mlflow.projects.utils import get_entry_point_command

from deploy import server
from entrypoints.train import train
from tests.conftest import HANG_SECONDS, ROOT, assert_one_line, free_port

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
LOCKED = {
    package["name"]: package["version"]
    for package in tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    if "version" in package
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that PostgreSQL's own user can enter too, as it cannot pytest's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o711)
        yield Path(folder)


@pytest.mark.skipif(server.postgresql_programs() is None, reason="PostgreSQL is not installed")
def test_a_stopped_server_leaves_nothing_behind(folder: Path) -> None:
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "deploy.server", "--port", str(port)],
        env={**os.environ, server.ADMIN_PASSWORD: "twelve letters", "TMPDIR": str(folder)},
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # In the middle of starting, when there is PostgreSQL and not yet a server.
        assert any("ready to accept connections" in line for line in process.stderr)
        assert list(folder.iterdir())
        children = psutil.Process(process.pid).children(recursive=True)
        assert children
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 0
    assert list(folder.iterdir()) == []
    assert not [child for child in children if child.is_running()]


def test_the_server_says_in_one_line_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def message(*arguments: str) -> str:
        return assert_one_line(CliRunner().invoke(server.server, arguments))

    monkeypatch.setattr(server, "postgresql_programs", lambda: Path("/nowhere"))
    monkeypatch.delenv(server.ADMIN_PASSWORD, raising=False)
    assert f"{server.ADMIN_PASSWORD} is not set" in message()
    monkeypatch.setenv(server.ADMIN_PASSWORD, "twelve letters")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert f"port {port} is in use" in message("--port", port)
    monkeypatch.setattr(server, "postgresql_programs", lambda: None)
    assert "PostgreSQL is not installed" in message()


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_containers_are_pinned_watched_and_restarted(name: str) -> None:
    service = COMPOSE["services"][name]
    assert re.search(r":\d+\.\d+", service["image"])
    assert service["healthcheck"]["test"]
    assert service["restart"] == "unless-stopped"


def test_containers_are_reached_from_this_machine_alone() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:5000:5000"]
    assert "network_mode" not in str(COMPOSE)


def test_every_secret_is_asked_for_and_none_is_kept() -> None:
    example = (DEPLOY / "env.example").read_text()
    asked = set()
    for service in COMPOSE["services"].values():
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET", name):
                (variable,) = re.fullmatch(r"\$\{(\w+):\?.+\}", value).groups()
                asked.add(variable)
    assert set(re.findall(r"^(\w+)=$", example, re.MULTILINE)) == asked
    assert not re.findall(r"^\w+=.+$", example, re.MULTILINE)
    ignored = subprocess.run(["git", "check-ignore", "--quiet", "deploy/.env"], cwd=ROOT)
    assert ignored.returncode == 0


def test_images_hold_what_the_lock_pins() -> None:
    assert COMPOSE["services"]["mlflow"]["image"].endswith(f":{LOCKED['mlflow']}")
    for path in (DEPLOY / "Dockerfile", DEPLOY / "kubernetes" / "Dockerfile"):
        lines = path.read_text()
        assert re.findall(r"uv==(\S+)", lines) == [LOCKED["uv"]]
        assert "uv sync --frozen" in lines


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The job that MLflow makes of the template for `mlflow run -e train -P model=baseline`."""
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("KUBE_MLFLOW_TRACKING_URI", raising=False)
    # As deploy/README.md says: MLflow takes one environment, and a job's is an image.
    shutil.copy(ROOT / "MLproject", tmp_path)
    (edit,) = re.findall(r"^sed .+MLproject$", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    subprocess.run(edit, shell=True, cwd=tmp_path, check=True)
    project = load_project(tmp_path)
    assert project.docker_env == {"image": "registry.example.org/fashion-environment:1"}
    config = _parse_kubernetes_config(
        json.loads((DEPLOY / "kubernetes" / "backend-config.json").read_text())
    )
    command = get_entry_point_command(project, "train", {"model": "baseline"}, str(tmp_path))
    return kubernetes._get_kubernetes_job_definition(
        project.name,
        f"{config['repository-uri']}:1234567",
        "sha256:89ab",
        kubernetes._get_run_command(command),
        {
            "MLFLOW_RUN_ID": "abc",
            "MLFLOW_EXPERIMENT_ID": "1",
            "MLFLOW_TRACKING_URI": "https://mlflow.example.org",
        },
        config["kube-job-template"],
    )


def test_the_job_is_valid(job: dict) -> None:
    versions = kubernetes_validate.utils.all_versions()
    assert len(versions) > 4
    for version in versions[-4:]:
        kubernetes_validate.validate(job, version, strict=True)
    job["spec"]["template"]["spec"]["containers"][0]["imagee"] = "a mistake is found"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, versions[-1], strict=True)


def test_the_job_runs_the_command_with_the_options_given(job: dict) -> None:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.org/fashion:1234567@sha256:89ab"
    assert container["command"][:3] == ["python", "-m", "entrypoints.train"]
    options = [*container["command"][3:], *container["args"]]
    context = train.make_context("train", options)
    assert context.params["model"] == "baseline"
    assert context.params["data_dir"] == ""


def test_the_job_takes_its_account_from_a_secret(job: dict) -> None:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    env = {variable["name"]: variable for variable in container["env"]}
    assert len(env) == len(container["env"])
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        assert env[name]["valueFrom"]["secretKeyRef"]["name"] == "mlflow-account"
    assert env["MLFLOW_TRACKING_URI"]["value"] == "https://mlflow.example.org"
    assert env["MLFLOW_RUN_ID"]["value"] == "abc"


def test_the_job_has_no_rights_and_is_tried_once(job: dict) -> None:
    assert job["spec"]["backoffLimit"] == 0
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["securityContext"]["runAsNonRoot"]
    assert not pod["automountServiceAccountToken"]
    (container,) = pod["containers"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["resources"].keys() == {"requests", "limits"}
