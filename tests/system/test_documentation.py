"""No command that the documentation shows has gone stale."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from entrypoints.cli.mlproject import command_of
from fashion.analysis import summary
from fashion.data.dataset import Dataset
from fashion.settings.tags import MODEL_TAG
from tests.conftest import ROOT
from tests.pictures import write_classes

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROJECT = "mlflow run . "
# What runs elsewhere: the beginning of a command, and the test that has it.
ELSEWHERE = {
    "python3 -m pip install": "system/test_project.py",
    "export MLFLOW_TRACKING_URI": "system/test_shared_server.py",
    "mlflow models serve": "system/test_serving.py",
    "printf ": "system/test_serving.py",
    "torchrun ": "system/test_several_processes.py",
}
SMALL = ["--epochs", "2", "--val-size", "200"]


def commands(page: Path) -> list[str]:
    """Return the shell commands of a page, without comments."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").replace("|\n", "| ").splitlines()
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line]


def arguments(command: str) -> tuple[str, list[str]]:
    """Return the entry point of an `mlflow run`, and its arguments."""
    words = shlex.split(command.partition(PROJECT)[2])
    entry_point, passed = "main", []
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "-e":
            entry_point = value
        elif option == "-P":
            name, _, text = value.partition("=")
            passed += [f"--{name.replace('_', '-')}", text]
        else:
            assert option in ("--env-manager", "--experiment-name")
    return entry_point, passed


def test_every_command_is_executed_here_or_elsewhere() -> None:
    shown = [command for page in PAGES for command in commands(page)]
    others = [command for command in shown if PROJECT not in command]
    assert len(others) < len(shown)
    for beginning, test in ELSEWHERE.items():
        assert (ROOT / "tests" / test).is_file()
        assert any(command.startswith(beginning) for command in shown)
    assert [each for each in others if not each.startswith(tuple(ELSEWHERE))] == []


@pytest.mark.slow(seconds=130)
def test_a_person_who_types_them_all_sees_no_error(
    invoke: Callable[..., Result],
    store: Path,
    small: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(entry_point: str, passed: list[str]) -> Result:
        result = invoke(command_of(entry_point), passed)
        assert result.exit_code == 0, (entry_point, passed, result.output)
        return result

    (store / "photos").mkdir()
    Image.fromarray(small.test.images[0, 0].numpy()).save(store / "photos" / "boot.png")
    write_classes(store / "flowers", ["rose", "tulip"], each=12)
    run("main", SMALL)
    run("train", ["--model", "compact", *SMALL])
    trained = mlflow.search_runs(output_format="list", filter_string=f"tags.{MODEL_TAG} = 'cnn'")
    for page in PAGES:
        for command in commands(page):
            if PROJECT not in command:
                continue
            entry_point, passed = arguments(command.replace("RUN_ID", trained[0].info.run_id))
            if "--resume" in passed:
                interrupt_a_training(invoke, monkeypatch)
                run(entry_point, passed)
            elif entry_point in ("sweep", "reproduce") or "--nproc" in passed:
                # Their tests take a minute, and reproduce trains on the whole dataset.
                command_of(entry_point).make_context(entry_point, passed)
            elif entry_point in ("main", "train"):
                run(entry_point, [*passed, *(SMALL[:2] if "--data" in passed else SMALL)])
            else:
                run(entry_point, passed)


def interrupt_a_training(invoke: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(summary, "progress", stop)
        result = invoke(command_of("train"), ["--model", "baseline", *SMALL])
    assert "Interrupted; continue with" in result.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_picture_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_entry_point_is_in_the_readme() -> None:
    table = (ROOT / "README.md").read_text()
    for path in (ROOT / "entrypoints").glob("[!_]*.py"):
        assert f"| `{path.stem}` |" in table
        assert CliRunner().invoke(command_of(path.stem), ["--help"]).exit_code == 0
