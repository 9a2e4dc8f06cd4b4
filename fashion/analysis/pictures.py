"""Which pictures of a run to compare across runs."""

from pathlib import Path

# File names, by key of the UI's image grid.
PICTURES = {
    "confusion matrix": "confusion_matrix.png",
    "predictions": "predictions.png",
    "surest mistakes": "confidently_wrong.png",
}


def to_compare(folder: Path) -> dict[str, Path]:
    """Return those in a folder of a run's files, by key."""
    paths = {key: folder / name for key, name in PICTURES.items()}
    return {key: path for key, path in paths.items() if path.exists()}
