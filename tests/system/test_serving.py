"""The champion in an environment without this project, and behind HTTP."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import pytest
from numpy.typing import NDArray

from fashion.data.dataset import FashionMNIST, to_float
from fashion.settings.task import CHAMPION_URI, MODEL_NAME
from fashion.tracking import models, registry
from fashion.tracking.query import Query
from fashion.training import evaluation
from tests.conftest import HANG_SECONDS

IMAGES = 7
# The same weights and the same torch: only the order of summation may differ.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
STARTUP_SECONDS = 120
# What another project's author would write, without this project's code.
STRANGERS_SCRIPT = """
import importlib.util
import sys

import mlflow
import numpy as np
import torch

uri, images_path, logits_path = sys.argv[1:]
assert importlib.util.find_spec("fashion") is None, "this project is on the path"
assert importlib.util.find_spec("torchvision") is None, "more is installed than the pins"
images = np.load(images_path)
model, pyfunc = mlflow.pytorch.load_model(uri), mlflow.pyfunc.load_model(uri)
logits = {}
for size in (1, len(images)):
    batch = images[:size]
    with torch.inference_mode():
        logits[f"pytorch_{size}"] = model(torch.from_numpy(batch)).numpy()
    logits[f"pyfunc_{size}"] = pyfunc.predict(batch)
np.savez(logits_path, **logits)
"""


@pytest.fixture
def images(small: FashionMNIST) -> NDArray[np.float32]:
    """A few real test images, as the model card says they must be."""
    return to_float(small.test.images[:IMAGES]).numpy()


@pytest.fixture
def logits(train_small: Callable[..., str], small: FashionMNIST) -> NDArray[np.float32]:
    """What the champion, which is registered here, answers in this process to `images`."""
    train_small("cnn", batch_size=8, lr=0.05, seed=0)
    registry.register(MODEL_NAME, Query(models=["cnn"]), small)
    model = models.load(CHAMPION_URI)
    answers = evaluation.predict(model, small.test.images[:IMAGES]).numpy()
    # A model that says the same to everything would agree with itself on anything.
    assert answers.std(axis=0).min() > 0.01
    return answers


@pytest.mark.environment
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
def test_the_champion_needs_nothing_but_the_packages_it_pins(
    images: NDArray[np.float32], logits: NDArray[np.float32], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pins = mlflow.artifacts.download_artifacts(f"{CHAMPION_URI}/requirements.txt")
    assert {line.split("==")[0] for line in Path(pins).read_text().split()} == {"mlflow", "torch"}
    python = elsewhere / "venv" / "bin" / "python"
    for command in (
        ["uv", "venv", "--python", sys.executable, "venv"],
        ["uv", "pip", "install", "--python", str(python), "--requirements", pins],
    ):
        subprocess.run(command, cwd=elsewhere, check=True)

    np.save(elsewhere / "images.npy", images)
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    settings = {
        "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    subprocess.run(
        [python, "-I", "-c", STRANGERS_SCRIPT, CHAMPION_URI, "images.npy", "logits.npz"],
        cwd=elsewhere,
        env=kept | settings,
        check=True,
    )
    theirs = np.load(elsewhere / "logits.npz")
    assert len(theirs) == 4
    for name, answers in theirs.items():
        size = int(name.split("_")[1])
        np.testing.assert_allclose(answers, logits[:size], **TOLERANCE, err_msg=name)


@pytest.fixture
def server(logits: NDArray[np.float32], tmp_path: Path) -> Iterator[str]:
    """The champion, served by MLflow's own command; yields the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    # As in an activated environment: MLflow finds uvicorn on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["mlflow", "models", "serve", "-m", CHAMPION_URI, "--env-manager", "local", *address],
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(f"{url}/ping", process, log)
        yield url
    finally:
        # The session holds uvicorn and its workers too.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no answer from {url}:\n{log.read_text(errors='replace')}")


def _post(url: str, body: object) -> bytes:
    request = urllib.request.Request(
        f"{url}/invocations",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=HANG_SECONDS) as response:
        return response.read()


def test_the_served_champion_answers_the_documented_request(
    server: str, images: NDArray[np.float32], logits: NDArray[np.float32]
) -> None:
    for size in (1, IMAGES):
        answer = json.loads(_post(server, {"inputs": images[:size].tolist()}))
        np.testing.assert_allclose(answer["predictions"], logits[:size], **TOLERANCE)

    # Images of another size are the client's mistake, and do no harm to the server.
    with pytest.raises(urllib.error.HTTPError) as refusal:
        _post(server, {"inputs": images[:, :, :14].tolist()})
    assert refusal.value.code == 400
    assert json.loads(_post(server, {"inputs": images[:1].tolist()}))
