"""Figures are drawn by another process if there is one, and in any case."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from PIL import Image

from fashion.analysis import drawing
from fashion.analysis.drawing import Drawing, draw, drawn, start
from tests.conftest import HANG_SECONDS, ROOT

HISTORY = pd.DataFrame({"train_loss": [1.0, 0.5], "train_accuracy": [0.5, 0.7]}, [1, 2])


@pytest.fixture
def curves(tmp_path: Path) -> Drawing:
    return Drawing(tmp_path / "curves.png", "learning_curves", (HISTORY, "title"))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[psutil.Popen]:
    """The process that draws."""
    monkeypatch.setattr(drawing, "_started", [])
    start()
    (process,) = drawing._started
    yield process
    drawing._stop()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The figures that this process has drawn."""
    names = []

    def noting(each: Drawing) -> None:
        names.append(each.figure)
        draw(each)

    monkeypatch.setattr(drawing, "draw", noting)
    return names


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_the_process_draws_what_this_one_would(
    process: object, here: list[str], curves: Drawing, tmp_path: Path
) -> None:
    for _ in range(2):
        with drawn([curves]):
            pass
        drawn_there = pixels(curves.path)
        curves.path.unlink()
    assert here == []
    draw(curves)
    assert np.array_equal(drawn_there, pixels(curves.path))


def test_without_the_process_this_one_draws_after_the_body(
    monkeypatch: pytest.MonkeyPatch, here: list[str], curves: Drawing
) -> None:
    monkeypatch.setattr(drawing, "_started", [])
    with drawn([curves]):
        assert not curves.path.exists()
    assert here == ["learning_curves"]
    assert curves.path.exists()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_if_the_process_dies_this_one_draws(
    process: subprocess.Popen, here: list[str], curves: Drawing, when: str
) -> None:
    if when == "before":
        process.kill()
        process.wait()
    with drawn([curves]):
        process.kill()
    assert here == ["learning_curves"]
    assert curves.path.exists()


def test_what_cannot_be_drawn_is_raised_here(
    process: object, here: list[str], tmp_path: Path
) -> None:
    nowhere = Drawing(tmp_path / "none" / "curves.png", "learning_curves", (HISTORY, "title"))
    with pytest.raises(FileNotFoundError), drawn([nowhere]):
        pass


def test_after_an_error_no_answer_is_taken_for_another(
    process: object, here: list[str], curves: Drawing, tmp_path: Path
) -> None:
    with pytest.raises(ZeroDivisionError), drawn([curves]):
        raise ZeroDivisionError
    other = replace(curves, path=tmp_path / "other.png")
    with drawn([other]):
        pass
    assert other.path.exists()


def test_the_process_ends_with_the_one_that_started_it() -> None:
    code = (
        "import os; from fashion.analysis import drawing; drawing.start();"
        "print(drawing._started[0].pid, flush=True); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    )
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(done.stdout)).wait(HANG_SECONDS)


def test_it_imports_no_torch() -> None:
    code = f"import sys, {drawing.FIGURES}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
