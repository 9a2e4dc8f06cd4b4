"""The notebook runs, and its kept outputs are what it shows now."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from mlflow import MlflowClient
from nbclient import NotebookClient
from nbformat import NotebookNode

from fashion.data.dataset import Dataset
from tests.conftest import HANG_SECONDS, ROOT

PATH = ROOT / "notebooks" / "lab.ipynb"
MOST_BYTES = 500_000
# The beginning of an absolute path: of folders on this kind of system, or of a drive.
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|var|opt|work|Users)/|\b[A-Z]:\\")
# In place of the cell "parameters": as much data as the other tests train on.
SMALL = """
from dataclasses import replace

EPOCHS, VAL_SIZE = 1, 200
everything = load_dataset()


def head(subset, size):
    return replace(subset, pixels=subset.pixels[:size], labels=subset.labels[:size])


def load_dataset():
    train, test = head(everything.train, 2_000), head(everything.test, 500)
    return replace(everything, train=train, test=test)
"""


def code_cells(notebook: NotebookNode) -> dict[str, NotebookNode]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def text_of(output: NotebookNode) -> str:
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def kinds(cell: NotebookNode) -> set[str]:
    """What a cell shows: printed text, and kinds of data. Warnings depend on the machine."""
    shown = {output.get("name") for output in cell.outputs} & {"stdout"}
    return shown.union(*(output.get("data", []) for output in cell.outputs))


def test_the_kept_outputs_are_of_one_run_of_all_cells() -> None:
    cells = code_cells(nbformat.read(PATH, as_version=4)).values()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert all(text_of(output) for output in outputs)
    assert not [text_of(output) for output in outputs if ABSOLUTE.search(text_of(output))]
    assert PATH.stat().st_size < MOST_BYTES


@pytest.mark.slow(seconds=110)
def test_the_notebook_runs_to_its_check_and_leaves_only_its_store(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(PATH, as_version=4)
    kept = {name: kinds(cell) for name, cell in code_cells(notebook).items()}
    (parameters,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    parameters.source = SMALL

    # As in the project's folder, without the variables of the tests.
    folder, home = tmp_path / "project" / "notebooks", tmp_path / "home"
    folder.mkdir(parents=True)
    (folder.parent / "fashion").symlink_to(ROOT / "fashion")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(home / "runtime"))
    env = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith(("MLFLOW_", "FASHION_"))
    } | {
        "FASHION_DATA_DIR": str(dataset.directory),
        "FASHION_STATE_DIR": str(home / "state"),
        "IPYTHONDIR": str(home / "ipython"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    client = NotebookClient(
        notebook, timeout=HANG_SECONDS, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=env)

    cells = code_cells(notebook)
    assert {name: kinds(cell) for name, cell in cells.items()} == kept
    assert text_of(cells["check"].outputs[0]) == "The loaded model gives what its run logged.\n"
    assert [path.name for path in folder.iterdir()] == ["lab-store"]
    assert {path.name for path in folder.parent.iterdir()} == {"fashion", "notebooks"}

    store = MlflowClient(f"sqlite:///{folder / 'lab-store' / 'mlflow.db'}")
    champion = store.get_model_version_by_alias("fashion-mnist-cnn", "champion")
    experiment = store.get_run(champion.run_id).info.experiment_id
    runs = store.search_runs([experiment])
    assert {run.data.tags["model"] for run in runs} == {"baseline", "nonlinear", "cnn"}
    assert {run.info.status for run in runs} == {"FINISHED"}
