"""Paths and ids as people type them, and as `mlflow run` passes them on."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from entrypoints.cli.types import RunToResume
from fashion.files import state_dir
from tests.conftest import assert_one_line

PATHS = [
    ("compare", "output"),
    ("predict", "images"),
    ("predict", "output"),
    ("predict", "figure"),
    ("explore", "output_dir"),
    ("export", "output_dir"),
    *((name, "data_dir") for name in ("train", "main", "predict", "explore", "export")),
]


def option(command: str, name: str) -> click.Option:
    entry_point = getattr(import_module(f"entrypoints.{command}"), command)
    opts = [f"--{name.replace('_', '-')}"]
    return next(each for each in entry_point.params if each.opts == opts)


@pytest.mark.parametrize(("command", "name"), PATHS)
def test_a_tilde_is_the_home_folder(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    suffix = ".png" if name == "figure" else ".csv"
    kind = option(command, name).type
    assert Path(kind.convert(f"~/x{suffix}", None, None)) == tmp_path / f"x{suffix}"
    assert str(kind.convert(f"x~{suffix}", None, None)) == f"x~{suffix}"


@pytest.mark.parametrize(("command", "name"), PATHS)
def test_the_home_of_nobody_is_a_usage_error_that_names_it(command: str, name: str) -> None:
    entry_point = getattr(import_module(f"entrypoints.{command}"), command)
    result = CliRunner().invoke(entry_point, [f"--{name}", "~nosuch/x.csv"])
    assert result.exit_code == 2
    assert "~nosuch/x.csv" in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("Error: ")


@pytest.mark.parametrize("variable", ["FASHION_DATA_DIR", "FASHION_STATE_DIR"])
def test_the_home_of_nobody_in_a_variable_is_one_line(
    variable: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "~nosuch")
    command = import_module("entrypoints.train").train
    assert "~nosuch" in assert_one_line(CliRunner().invoke(command, ["--model", "baseline"]))


RUN_IDS = ["5886a9b6" + "0" * 24, "5886a9b6" + "1" * 24, "ad77793b" + "2" * 24]


@pytest.fixture
def resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that reads --resume, on a machine with three unfinished runs."""
    monkeypatch.setenv("FASHION_STATE_DIR", str(tmp_path))
    for run_id in RUN_IDS:
        (state_dir() / "runs" / run_id).mkdir(parents=True)
    return lambda text: RunToResume().convert(text, None, None)


@pytest.mark.parametrize("length", [8, 12, 31, 32])
def test_the_beginning_of_an_id_resumes_the_run_that_has_it(
    resumed: Callable[[str], str], length: int
) -> None:
    assert resumed(RUN_IDS[2][:length]) == RUN_IDS[2]


def test_the_beginning_of_two_ids_is_refused_with_both(resumed: Callable[[str], str]) -> None:
    with pytest.raises(click.BadParameter) as caught:
        resumed("5886a9b6")
    assert all(run_id in str(caught.value) for run_id in RUN_IDS[:2])
    with pytest.raises(click.BadParameter, match="no unfinished run deadbeef"):
        resumed("deadbeef")
