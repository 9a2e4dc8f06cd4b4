"""Read the settings of a run back: from a file, or from what another run has logged."""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from fashion.settings import document
from fashion.settings.document import DocumentError
from fashion.settings.experiment import DEFAULTS
from fashion.tracking import query, store

RUNS = "runs:/"
# Of a run's artifacts.
SETTINGS = "settings.yaml"


def read(source: str) -> dict[str, Any]:
    """Return settings by name, as `Experiment.from_options` takes them.

    Args:
        source: a YAML file, or runs:/ID for the settings of a run; the first 8 characters of the
            id are enough.

    Raises:
        DocumentError: there are no settings.
        CompareError: there is no such run.
        TrackingError: the tracking store cannot be used.
    """
    if not source.startswith(RUNS):
        return document.parse(document.read(Path(source)), source)
    store.connect()
    with store.refusals(store.START_IT), store.single_attempt():
        run = query.run(source.removeprefix(RUNS))
    try:
        with store.single_attempt(), store.without_progress_bar():
            text = mlflow.artifacts.load_text(f"{RUNS}{run.info.run_id}/{SETTINGS}")
    except (MlflowException, OSError) as error:
        raise DocumentError(
            f"run {run.info.run_id} ({run.info.run_name}) has logged no {SETTINGS}: name a"
            " training run"
        ) from error
    return DEFAULTS | document.parse(text, source)
