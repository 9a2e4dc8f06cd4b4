"""Measure requests per second and latency of the served champion, and of MLflow's plain model.

    uv run python -m benchmarks.serving    # three minutes

Both are served by `mlflow models serve`, in turn, and asked by clients in threads of this process
that keep their connections. The plain model is the same program with MLflow's own face, which takes
an image's pixels as floats in JSON. Needs a champion in the registry.
"""

import base64
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import yaml
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from PIL import Image, ImageOps

from benchmarks.timing import machine, table
from fashion.data.dataset import to_float
from fashion.data.sources import load_dataset
from fashion.settings.task import CHAMPION_URI, FASHION_MNIST
from fashion.tracking import store
from fashion.tracking.archive import fetched

START_SECONDS = 120


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """Serve the model in a folder with one worker; yield the port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "uvicorn", "--host", "127.0.0.1", "--port", str(port)),
        *("--log-level", "error", "mlflow.pyfunc.scoring_server.app:app"),
    ]
    # What `mlflow models serve` runs; without it between, the server can be ended by its id.
    process = subprocess.Popen(command, env={**os.environ, "__pyfunc_model_path__": str(folder)})
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                ask(http.client.HTTPConnection("127.0.0.1", port), "GET", "/ping", b"")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        yield port
    finally:
        process.terminate()
        process.wait()


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes) -> None:
    connection.request(method, path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    assert answer.status == 200, content


def measured(port: int, body: bytes, clients: int, requests: int) -> list[float]:
    """Return the seconds of each request, and last of all of them."""

    def client(_: int) -> list[float]:
        connection, seconds = http.client.HTTPConnection("127.0.0.1", port), []
        for _ in range(requests // clients):
            start = time.perf_counter()
            ask(connection, "POST", "/invocations", body)
            seconds.append(time.perf_counter() - start)
        return seconds

    with ThreadPoolExecutor(clients) as threads:
        start = time.perf_counter()
        each = [seconds for of_one in threads.map(client, range(clients)) for seconds in of_one]
        return [*each, time.perf_counter() - start]


def plain(folder: Path) -> None:
    """Give a stored model the face that `mlflow.pytorch.log_model` gives it."""
    described = yaml.safe_load((folder / "MLmodel").read_text())
    described["flavors"]["python_function"] |= {"loader_module": "mlflow.pytorch", "data": "data"}
    del described["flavors"]["python_function"]["code"]
    inputs = Schema([TensorSpec(np.dtype("float32"), (-1, *FASHION_MNIST.shape))])
    described["signature"] = ModelSignature(inputs).to_dict()
    (folder / "MLmodel").write_text(yaml.safe_dump(described))


def picture(content: Image.Image, kind: str, **options: int) -> dict:
    """Return a request about a file."""
    file = io.BytesIO()
    content.save(file, kind, **options)
    text = base64.b64encode(file.getvalue()).decode()
    return {"dataframe_split": {"columns": ["image"], "data": [[text]]}}


@click.command()
@click.option("--requests", type=click.IntRange(min=100), default=400, show_default=True)
def main(requests: int) -> None:
    """Print requests per second and latency for each kind of request."""
    store.connect()
    image = load_dataset().test.images[0]
    pixels = {"inputs": to_float(image.unsqueeze(0)).tolist()}
    small = Image.fromarray(image.squeeze(0).numpy())
    scene = ImageOps.invert(ImageOps.expand(small.resize((1800, 1800)), (1100, 600)))
    photograph = picture(scene.convert("RGB"), "JPEG", quality=90)  # 4000 x 3000
    contenders = [
        ("plain model: 28x28 floats", True, pixels),
        ("28x28 floats", False, pixels),
        ("28x28 PNG", False, picture(small, "PNG")),
        ("JPEG of 12 megapixels", False, photograph),
    ]
    click.echo(", ".join(f"{name} {value}" for name, value in machine().items()))
    rows = []
    with fetched(CHAMPION_URI) as ours, fetched(CHAMPION_URI) as theirs:
        plain(theirs.folder)
        with served(ours.folder) as our_port, served(theirs.folder) as their_port:
            for clients in (1, 8):
                for name, of_mlflow, body in contenders:
                    port = their_port if of_mlflow else our_port
                    encoded = json.dumps(body).encode()
                    measured(port, encoded, clients, requests // 10)
                    *each, whole = measured(port, encoded, clients, requests)
                    cuts = statistics.quantiles(each, n=100)
                    rows.append(
                        [
                            name,
                            clients,
                            f"{len(each) / whole:.0f}",
                            f"{1000 * cuts[49]:.1f}",
                            f"{1000 * cuts[98]:.1f}",
                        ]
                    )
    click.echo(table(["request", "clients", "requests/s", "p50, ms", "p99, ms"], rows))


if __name__ == "__main__":
    main()
