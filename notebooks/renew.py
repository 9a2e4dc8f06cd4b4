"""Execute the notebook and keep its outputs: uv run python notebooks/renew.py"""

import shutil
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def main() -> None:
    path = FOLDER / "lab.ipynb"
    notebook = nbformat.read(path, as_version=4)
    shutil.rmtree(FOLDER / "lab-store", ignore_errors=True)
    # Times of cells, and in how many pieces a text arrived, would differ each time.
    client = NotebookClient(
        notebook,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
