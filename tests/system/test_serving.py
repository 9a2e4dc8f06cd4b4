"""The champion in an environment without this project, and behind HTTP."""

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fashion.data.dataset import Dataset, to_float
from fashion.settings.task import CHAMPION_URI, FASHION_MNIST, MODEL_NAME
from fashion.tracking import models, registry
from fashion.tracking.query import Query
from fashion.training import evaluation
from tests.conftest import HANG_SECONDS, free_port

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
raw = pyfunc.get_raw_model().eval().to("cpu").train(False)
answers = {}
for size in (1, len(images)):
    batch = images[:size]
    with torch.inference_mode():
        answers[f"pytorch_{size}"] = model(torch.from_numpy(batch)).numpy()
        answers[f"raw_{size}"] = raw(torch.from_numpy(batch)).numpy()
answers["classes"] = pyfunc.predict(images)["class"].to_numpy(dtype=str)
answers["photograph"] = pyfunc.predict("boot.png")["class"].to_numpy(dtype=str)
np.savez(logits_path, **answers)
"""


def photograph(image: NDArray[np.float32], kind: str = "PNG") -> bytes:
    """A picture of a dark garment on a light wall."""
    garment = Image.fromarray((255 * image.squeeze()).astype(np.uint8)).resize((280, 280))
    content = io.BytesIO()
    ImageOps.invert(ImageOps.expand(garment, 60)).convert("RGB").save(content, kind, quality=95)
    return content.getvalue()


@pytest.fixture
def images(small: Dataset) -> NDArray[np.float32]:
    """A few real test images, as the model card says they must be."""
    return to_float(small.test.images[:IMAGES]).numpy()


@pytest.fixture
def logits(train_small: Callable[..., str], small: Dataset) -> NDArray[np.float32]:
    """What the champion, which is registered here, answers in this process to `images`."""
    train_small("cnn", batch_size=8, lr=0.05, seed=0)
    registry.register(MODEL_NAME, Query(models=["cnn"]), small)
    model = models.load(CHAMPION_URI)
    answers = evaluation.predict(model, small.test.images[:IMAGES]).numpy()
    # A model that says the same to everything would agree with itself on anything.
    assert answers.std(axis=0).min() > 0.01
    return answers


@pytest.mark.slow(seconds=100)
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not on PATH")
def test_the_champion_needs_nothing_but_the_packages_it_pins(
    images: NDArray[np.float32], logits: NDArray[np.float32], tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    pins = mlflow.artifacts.download_artifacts(f"{CHAMPION_URI}/requirements.txt")
    assert {line.split("==")[0] for line in Path(pins).read_text().split()} == {
        *("mlflow", "pillow", "torch")
    }
    python = elsewhere / "venv" / "bin" / "python"
    for command in (
        ["uv", "venv", "--python", sys.executable, "venv"],
        ["uv", "pip", "install", "--python", str(python), "--requirements", pins],
    ):
        subprocess.run(command, cwd=elsewhere, check=True)

    np.save(elsewhere / "images.npy", images)
    (elsewhere / "boot.png").write_bytes(photograph(images[0]))
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
    theirs = dict(np.load(elsewhere / "logits.npz"))
    assert theirs.pop("classes").tolist() == [
        FASHION_MNIST.classes[index] for index in logits.argmax(axis=1)
    ]
    ours = mlflow.pyfunc.load_model(CHAMPION_URI).predict(photograph(images[0]))
    assert theirs.pop("photograph").tolist() == ours["class"].tolist()
    assert len(theirs) == 4
    for name, answers in theirs.items():
        size = int(name.split("_")[1])
        np.testing.assert_allclose(answers, logits[:size], **TOLERANCE, err_msg=name)

    # So do the batches of `mlflow models predict`, and what goes into a Docker image.
    (elsewhere / "request.json").write_text(json.dumps(of_pictures(photograph(images[0]))))
    for arguments in (
        ["generate-dockerfile", "-m", CHAMPION_URI, "-d", "docker"],
        ["predict", "-m", "docker/model_dir", "-i", "request.json", "-o", "answer.json"],
    ):
        command = [python.with_name("mlflow"), "models", *arguments, "--env-manager", "local"]
        subprocess.run(command, cwd=elsewhere, env=kept | settings, check=True)
    assert "pillow==" in (elsewhere / "docker" / "model_dir" / "requirements.txt").read_text()
    (answer,) = json.loads((elsewhere / "answer.json").read_text())["predictions"]
    assert answer["class"] == ours["class"].item()


@pytest.fixture
def server(logits: NDArray[np.float32], tmp_path: Path) -> Iterator[str]:
    """The champion, served by MLflow's own command; yields the URL."""
    port = free_port()
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


def ask(url: str, body: dict) -> list[dict]:
    return json.loads(_post(url, body))["predictions"]


def of_pictures(*contents: bytes | str, **params: object) -> dict:
    """Return a request about pictures, or texts in their place."""
    texts = [
        each if isinstance(each, str) else base64.b64encode(each).decode() for each in contents
    ]
    data = {"columns": ["image"], "data": [[text] for text in texts]}
    return {"dataframe_split": data} | ({"params": params} if params else {})


def refusal(url: str, body: dict) -> str:
    """Return the message with which the server refuses a request as the client's mistake."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        _post(url, body)
    assert refused.value.code == 400
    answer = refused.value.read().decode()
    assert len(answer.splitlines()) == 1
    assert len(answer) < 400
    return json.loads(answer)["message"]


def png_of(width: int, height: int) -> bytes:
    """A PNG of a black stripe on white, a thousandth of the size of its pixels."""
    content = io.BytesIO()
    picture = Image.new("RGBA", (width, height), "white")
    picture.paste("black", (width // 3, height // 4, width // 2, 3 * height // 4))
    picture.save(content, "PNG", compress_level=1)
    return content.getvalue()


def test_the_served_champion_takes_pictures_and_refuses_what_is_none(
    server: str, images: NDArray[np.float32], logits: NDArray[np.float32], tmp_path: Path
) -> None:
    names = [FASHION_MNIST.classes[index] for index in logits.argmax(axis=1)]
    temperature = mlflow.models.get_model_info(CHAMPION_URI).metadata["temperature"]
    probabilities = np.exp(logits / temperature)
    probabilities /= probabilities.sum(axis=1, keepdims=True)

    # Pixels: as floats, as integers, and as files of the dataset's images.
    levels = (255 * images).round().astype(int)
    files = []
    for level in levels:
        content = io.BytesIO()
        Image.fromarray(level.squeeze().astype(np.uint8)).save(content, "PNG")
        files.append(content.getvalue())
    for body in (
        {"inputs": images.tolist()},
        {"instances": images.tolist()},
        {"inputs": levels.reshape(-1, 784).tolist()},
        of_pictures(*files),
        {"inputs": [{"image": base64.b64encode(file).decode()} for file in files]},
        {"dataframe_records": [{"image": base64.b64encode(file).decode()} for file in files]},
    ):
        answers = ask(server, body)
        assert [answer["class"] for answer in answers] == names
        np.testing.assert_allclose(
            [answer["probability"] for answer in answers], probabilities.max(axis=1), rtol=1e-3
        )
        assert {answer["ground"] for answer in answers} == {"plain"}
    assert ask(server, of_pictures()) == []
    assert ask(server, {"inputs": []}) == []

    # Photographs in three formats, and the best three classes.
    for kind in ("PNG", "JPEG", "WEBP"):
        (answer,) = ask(server, of_pictures(photograph(images[0], kind), top=3))
        assert answer["class"] == names[0]
        assert 1 > answer["probability"] > answer["probability_2"] > answer["probability_3"] > 0
    pattern = 255 * (np.indices((200, 200)).sum(axis=0) // 10 % 2).astype(np.uint8)
    content = io.BytesIO()
    Image.fromarray(pattern).save(content, "PNG")
    (answer,) = ask(server, of_pictures(content.getvalue()))
    assert (answer["ground"], answer["probability"]) == ("cluttered", None)

    # What is no picture is the client's mistake, says so first, and does no harm to the server.
    (tmp_path / "private.png").write_bytes(files[0])
    for body, reason in (
        (of_pictures(b"hello"), "not an image in one of the formats"),
        (of_pictures(files[0], files[0][:60]), "picture 2"),
        (of_pictures("no base64!"), "the text is not base64"),
        (of_pictures(str(tmp_path / "private.png")), "the text is not base64"),
        (of_pictures(files[0], top=11), "top is 11, not between 1 and 10"),
        ({"inputs": (255 * images).tolist()}, "floats must be within 0 to 1"),
        ({"inputs": images[:, :, :14].tolist()}, "the shape is (7, 1, 14, 28)"),
        ({"inputs": [None]}, "NoneType is no picture"),
    ):
        assert reason in refusal(server, body)[:80] or reason == "picture 2"
    before = peak(server)
    bomb = of_pictures(png_of(7_100, 7_100))
    with ThreadPoolExecutor(8) as clients:
        for message in clients.map(lambda _: refusal(server, bomb), range(16)):
            assert message.startswith("7100x7100 pixels exceed the limit")
    assert peak(server) - before < 100
    # Of the largest that are taken, one at a time is in memory, whatever the number of threads.
    allowed = of_pictures(png_of(5_700, 5_700))
    with ThreadPoolExecutor(8) as clients:
        large = list(clients.map(lambda _: ask(server, allowed), range(8)))
    assert len({answer[0]["class"] for answer in large}) == 1
    # 420 to 540 MiB on a quiet machine, 920 on a busy one; 1,240 with eight at a time.
    assert peak(server) - before < 1100

    # Requests beside each other get their own answers.
    with ThreadPoolExecutor(8) as clients:
        several = list(clients.map(lambda file: ask(server, of_pictures(file)), files * 10))
    assert [answer[0]["class"] for answer in several] == names * 10


def peak(url: str) -> float:
    """Return the largest memory that the server has used, in MiB."""
    port = int(url.rpartition(":")[2])
    pids = {
        connection.pid
        for connection in psutil.net_connections("tcp")
        if connection.laddr
        and connection.laddr.port == port
        and connection.pid
        and connection.status == psutil.CONN_LISTEN
    }
    assert pids
    return sum(
        int(line.split()[1]) / 1024
        for pid in pids
        for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    )
