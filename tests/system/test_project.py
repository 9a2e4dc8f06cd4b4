"""MLproject, conda.yaml, uv.lock and the commands agree, and `mlflow run` works as documented."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import matplotlib
import mlflow
import pytest
import yaml
from packaging.requirements import Requirement

from entrypoints.cli import conda, mlproject
from fashion import advice
from fashion.data.dataset import Dataset
from fashion.settings.experiment import OPTIONS
from fashion.settings.presets import PRESETS
from tests.conftest import HANG_SECONDS, ROOT

PROJECT = yaml.safe_load((ROOT / "MLproject").read_text())
CONDA = yaml.safe_load((ROOT / "conda.yaml").read_text())


def test_every_command_is_an_entry_point() -> None:
    modules = {path.stem for path in (ROOT / "entrypoints").glob("[!_]*.py")}
    assert set(PROJECT["entry_points"]) == modules


def test_mlproject_is_what_the_commands_declare() -> None:
    assert (ROOT / "MLproject").read_text() == mlproject.render()


@pytest.mark.parametrize("entry_point", PROJECT["entry_points"])
def test_every_default_of_mlproject_is_one_that_no_preset_and_no_file_decides(
    entry_point: str,
) -> None:
    parameters = PROJECT["entry_points"][entry_point]["parameters"]
    if any(option.name == "config" for option in mlproject.command_of(entry_point).params):
        assert not parameters.keys() & OPTIONS.keys()


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_decide_nothing_but_what_is_theirs(preset: str) -> None:
    assert all(OPTIONS[name].preset for name in PRESETS[preset])


@pytest.mark.parametrize("entry_point", PROJECT["entry_points"])
def test_every_parameter_is_passed_on(entry_point: str) -> None:
    words = PROJECT["entry_points"][entry_point]["command"].split()
    assert words[:3] == ["python", "-m", f"entrypoints.{entry_point}"]
    expected = []
    for name in PROJECT["entry_points"][entry_point]["parameters"]:
        expected += [f"--{name.replace('_', '-')}", f"{{{name}}}"]
    assert words[3:] == expected


def test_conda_pins_what_the_lock_exports() -> None:
    assert (ROOT / "conda.yaml").read_text() == conda.render()


def test_conda_pins_what_every_entry_point_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    groups = project["dependency-groups"]
    needed = [*project["project"]["dependencies"], *groups["onnx"], *groups["sweep"]]
    (pip,) = (d["pip"] for d in CONDA["dependencies"] if isinstance(d, dict))
    pinned = [Requirement(line) for line in pip]
    assert {Requirement(line).name for line in needed} <= {pin.name for pin in pinned}
    assert all(str(pin.specifier).startswith("==") for pin in pinned)
    assert not {"pytest", "ruff"} & {pin.name for pin in pinned}


def test_conda_uses_conda_forge_alone() -> None:
    assert CONDA["channels"] == ["conda-forge", "nodefaults"]


def test_ci_runs_the_readmes_test_commands() -> None:
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    searches = re.findall(r"grep .*?'(.+?)' README.md", ci)
    found = [re.search(search, readme, re.MULTILINE).group() for search in searches]
    assert found == ["uv run pytest", ".uv/bin/uv run pytest -m slow"]
    commands = [line for line in readme.splitlines() if line.startswith("python3 -m pip install")]
    assert ["mlflow run ." in command for command in commands] == [True, False]
    assert "&& .uv/bin/uv run --no-default-groups mlflow run ." in commands[0]
    assert commands[1].endswith("&& .uv/bin/uv run pytest")


def test_the_command_for_a_missing_package_works_as_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(advice.MissingPackageError, match=r"^onnx not installed: ") as missing:
        advice.require("onnx", "onnx", "onnxscript")
    command = str(missing.value).removeprefix("onnx not installed: ")
    done = subprocess.run(
        f"{command} --dry-run", shell=True, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert sys.prefix in done.stderr or ".venv" in done.stderr
    assert "Would uninstall" not in done.stderr


def test_the_lock_is_up_to_date() -> None:
    done = subprocess.run(["uv", "lock", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def mlflow_run(store: Path, dataset: Dataset, *arguments: str) -> subprocess.CompletedProcess[str]:
    # A user's shell names no experiment: --experiment-name does.
    env = {name: value for name, value in os.environ.items() if "MLFLOW_EXPERIMENT" not in name}
    return subprocess.run(
        [sys.executable, "-m", "mlflow", "run", str(ROOT), *arguments],
        env={
            **env,
            "FASHION_DATA_DIR": str(dataset.directory),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        cwd=store,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )


@pytest.mark.slow
def test_mlflow_run_trains_in_an_environment_of_the_lock(store: Path, dataset: Dataset) -> None:
    """In the current environment test_shared_server.py does."""
    done = mlflow_run(
        store, dataset, "-e", "train", "--env-manager", "uv", "--experiment-name", "test",
        "-P", "model=baseline", "-P", "epochs=1", "-P", "lr=1e-1", "-P", "hidden_units=12",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (run,) = mlflow.search_runs(experiment_names=["test"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.params["model"] == "baseline"
    assert run.data.params["epochs"] == "1"
    assert run.data.params["hidden_units"] == "12"
    assert run.data.params["batch_size"] == "32"
    assert run.data.metrics["test_accuracy"] > 0.8
    assert run.data.tags["mlflow.project.entryPoint"] == "train"
    assert len(run.data.tags["mlflow.source.git.commit"]) == 40


@pytest.mark.slow  # test_runs.py has it without the process of `mlflow run`
def test_mlflow_run_with_a_bad_parameter_fails_in_one_line(store: Path, dataset: Dataset) -> None:
    done = mlflow_run(
        store, dataset, "-e", "train", "--env-manager", "local", "--experiment-name", "test",
        "-P", "epochs=0",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Invalid value for '--epochs'" in done.stderr
    assert "Traceback" not in done.stderr
    (run,) = mlflow.search_runs(experiment_names=["test"], output_format="list")
    assert run.info.status == "FAILED"


def test_no_module_has_side_effects_on_import(tmp_path: Path) -> None:
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in (ROOT / "fashion").rglob("[!_]*.py")
    ]
    code = f"import {', '.join(modules)}, mlflow; print(mlflow.active_run())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **os.environ,
            "HOME": str(tmp_path),
            # matplotlib caches the system's fonts where it is told to: here they are known.
            "MPLCONFIGDIR": matplotlib.get_cachedir(),
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "None"
    assert list(tmp_path.iterdir()) == []


def test_runs_are_compared_without_importing_what_trains() -> None:
    modules = "fashion.analysis.comparison, fashion.tracking.query, fashion.tracking.views"
    code = f"import sys, {modules}; print(*{{'torch', 'sklearn', 'matplotlib'}} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert done.stdout.strip() == ""
