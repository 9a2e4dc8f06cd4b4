"""What a person sees on the pages of MLflow's UI after the first command; needs Chromium.

`pytest -n 0 tests/system/test_ui.py --screenshots docs/ui` trains on all images and photographs the
pages.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from click.testing import Result
from mlflow.entities import Run
from playwright.sync_api import Page, expect, sync_playwright

from entrypoints.main import main
from fashion.analysis import drawing
from fashion.analysis.drawing import draw
from fashion.data import sources
from fashion.settings.tags import TRIAL_TAG
from fashion.tracking import views
from tests.server import Server

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
# For the page to show what it is asked for, on a busy machine.
PATIENCE_MILLISECONDS = 60_000
TRAINING = "workflowType=machine_learning"


@pytest.fixture
def page(store: Path) -> Iterator[Page]:
    """A page of a browser, in which relative addresses are those of a server of the store."""
    if BROWSER is None:
        pytest.skip("Chromium is not installed")
    server = Server(store)
    server.start()
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(base_url=server.uri, viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(PATIENCE_MILLISECONDS)
        yield page
        browser.close()
    server.stop()


@pytest.fixture
def photograph(page: Page, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that takes a picture of the page, if pictures are asked for."""
    folder = request.config.getoption("--screenshots")

    def photograph(name: str) -> None:
        if folder:
            # Greeting of the registry and the assistant's pane, on a first visit.
            for label in ("Try it now", "Close"):
                button = page.get_by_role("button", name=label, exact=True)
                if button.is_visible():
                    button.click()
            page.wait_for_timeout(2_000)  # charts move into place
            # Tests run in folders of their own.
            page.screenshot(path=request.config.invocation_params.dir / folder / f"{name}.png")

    return photograph


@pytest.fixture
def lab(
    invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> tuple[str, dict[str, Run]]:
    """Run main; return the address that it prints, and the runs by name."""
    monkeypatch.setattr(drawing, "draw", draw)
    if request.config.getoption("--screenshots"):
        dataset = request.getfixturevalue("dataset")
        monkeypatch.setattr(sources, "load_dataset", lambda *_: dataset)
        result = invoke(main, [])
    else:
        result = invoke(main, ["--epochs", "1", "--val-size", "200"])
    assert result.exit_code == 0, result.output
    (address,) = re.findall(r"http://\S+viewStateShareKey=\S+", result.stdout)
    runs = mlflow.search_runs(output_format="list")
    return address.removeprefix(views.LOCAL_SERVER), {run.info.run_name: run for run in runs}


def open_at(page: Page, address: str) -> None:
    """Load a page anew: MLflow's keeps its state where only the part after # changes."""
    page.goto("about:blank")
    page.goto(address)


def test_each_page_shows_what_was_found(
    lab: tuple[str, dict[str, Run]], page: Page, photograph: Callable[[str], None]
) -> None:
    address, runs = lab
    parent, best = runs["lab"], runs["cnn"]
    experiment = f"/#/experiments/{best.info.experiment_id}"

    open_at(page, address)
    expect(page.get_by_text("3 matching runs")).to_be_visible()
    for section in ("Which model is best?", "What does it get wrong?"):
        expect(page.get_by_text(section)).to_be_visible()
    for model in ("baseline", "nonlinear", "cnn"):
        expect(page.get_by_role("link", name=model, exact=True).first).to_be_visible()
    photograph("compare")
    # Charts below the first screen are drawn when they come into sight.
    page.set_viewport_size({"width": 1600, "height": 2400})
    for key in ("confusion", "predictions", "surest"):
        expect(page.locator(f"img[src*='{key}']")).to_have_count(3)
    photograph("compare-whole")
    page.set_viewport_size({"width": 1600, "height": 1000})

    open_at(page, f"{experiment}/runs?{TRAINING}")
    expect(page.get_by_role("link", name="lab", exact=True)).to_be_visible()
    expect(page.get_by_text("Image classifiers, trained and compared")).to_be_visible()
    photograph("runs")

    open_at(page, f"{experiment}/runs/{parent.info.run_id}?{TRAINING}")
    expect(page.get_by_text("is the best of 3 models")).to_be_visible()
    page.get_by_text("Show more").first.click()
    expect(page.locator("img[src*='comparison.png']")).to_be_visible()
    expect(page.get_by_text("Use the champion of")).to_be_visible()
    photograph("parent")

    open_at(page, f"{experiment}/runs/{best.info.run_id}?{TRAINING}")
    page.get_by_text("Show more").first.click()
    expect(page.locator("img[src*='confusion_matrix.png']")).to_be_visible()
    expect(page.get_by_text(f"config runs:/{best.info.run_id}")).to_be_visible()
    photograph("run")

    open_at(page, f"{experiment}/models?{TRAINING}")
    for model in ("baseline", "nonlinear", "cnn"):
        expect(page.get_by_role("link", name=model, exact=True).first).to_be_visible()
    photograph("models")

    open_at(page, f"{experiment}/models/{best.outputs.model_outputs[0].model_id}?{TRAINING}")
    expect(page.get_by_text("fashion-mnist-validation").first).to_be_visible()
    expect(page.get_by_text("Most confused on the test set.")).to_be_attached()
    photograph("model")

    open_at(page, f"/#/models/fashion-mnist-cnn?{TRAINING}")
    expect(page.get_by_text("Version 1")).to_be_visible()
    expect(page.get_by_text("cnn for Fashion-MNIST").first).to_be_visible()
    photograph("registered")

    open_at(page, f"/#/models/fashion-mnist-cnn/versions/1?{TRAINING}")
    expect(page.get_by_text("Most confused on the test set.")).to_be_visible()
    photograph("version")


def test_the_view_of_a_sweep_shows_its_trials(
    train_small: Callable[..., str], page: Page, photograph: Callable[[str], None]
) -> None:
    for trial, lr in enumerate((0.01, 0.1)):
        run_id = train_small(lr=lr)
        mlflow.MlflowClient().set_tag(run_id, TRIAL_TAG, str(trial))
    (address,) = re.findall(r"http://\S+", views.advice(run_id, views.SWEEP_VIEW))
    open_at(page, address.removeprefix(views.LOCAL_SERVER))
    expect(page.get_by_text("2 matching runs")).to_be_visible()
    expect(page.get_by_text("What was found?")).to_be_visible()
    expect(page.locator(".js-plotly-plot").first).to_be_visible()
    photograph("sweep")
