"""What a person sees in MLflow's UI at the address that the commands print; needs Chromium."""

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import mlflow
import pytest
from click.testing import Result

from entrypoints.main import main
from fashion.analysis import figures, summary
from fashion.settings.task import MODEL_NAME
from fashion.tracking import views

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Return a function that opens an address of the UI and returns the page's HTML."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "mlflow", "ui", "--port", url.rpartition(":")[2]]
    command += ["--workers", "1", "--backend-store-uri", mlflow.get_tracking_uri()]
    profile = tmp_path_factory.mktemp("browser")

    def open_page(address: str) -> str:
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,2400"]
        # All charts in sight: those out of it are not drawn.
        # The time that the page believes to have passed; it waits for the server's answers.
        options += ["--virtual-time-budget=20000", f"--user-data-dir={profile}", "--dump-dom"]
        address = address.replace(views.LOCAL_SERVER, url)
        return subprocess.run(
            [str(BROWSER), *options, address], capture_output=True, text=True, check=True
        ).stdout

    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as server:
        try:
            while not _answers(url):
                assert server.poll() is None
                time.sleep(0.2)
            yield open_page
        finally:
            server.terminate()


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/health") as answer:
            return answer.status == 200
    except OSError:
        return False


def test_the_printed_address_shows_the_models_compared(
    invoke: Callable[..., Result], page: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "figures", figures)
    result = invoke(main, ["--epochs", "1", "--val-size", "200"])
    assert result.exit_code == 0, result.output
    (address,) = re.findall(r"http://\S+viewStateShareKey=\S+", result.stdout)

    compared = page(address)
    for text in ("Which model is best?", "What does it get wrong?", "baseline", "nonlinear", "cnn"):
        assert text in compared
    assert "3 matching runs" in re.sub(r"<[^>]*>", "", compared)
    assert "get-artifact?path=images%2Fconfusion" in compared

    (parent,) = mlflow.search_runs(
        filter_string="attributes.run_name = 'lab'", output_format="list"
    )
    server = address.partition("/#/")[0]
    run_page = f"{server}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    assert "is the best of 3 models" in page(run_page)

    registry = page(f"{server}/#/models/{MODEL_NAME}?workflowType=machine_learning")
    assert "champion" in registry
