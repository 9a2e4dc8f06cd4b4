"""What a person sees in MLflow's UI at the address that the commands print; needs Chromium."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

from entrypoints.main import main
from fashion.analysis import figures, summary
from fashion.tracking import views
from tests.server import Server

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
def page(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Return a function that opens an address of the UI and returns the page's HTML."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed")
    profile = tmp_path_factory.mktemp("browser")
    server = Server(store)
    server.start()

    def open_page(address: str) -> str:
        # All charts in sight: those out of it are not drawn.
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1600,2400"]
        # The time that the page believes to have passed; it waits for the server's answers.
        options += ["--virtual-time-budget=20000", f"--user-data-dir={profile}", "--dump-dom"]
        address = address.replace(views.LOCAL_SERVER, server.uri)
        return subprocess.run(
            [str(BROWSER), *options, address], capture_output=True, text=True, check=True
        ).stdout

    yield open_page
    server.stop()


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
