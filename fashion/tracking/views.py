"""Charts of an experiment in MLflow's UI, and the address that shows them.

MLflow keeps a shared view as a tag of the experiment. Its content is the internal state of the UI
of mlflow 3.17, which a browser test guards; another version that does not understand it shows the
plain list of runs at the same address.
"""

import base64
import json
import shlex
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import (
    MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER,
    MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME,
    MLFLOW_RUN_NOTE,
)

from fashion.analysis.pictures import PICTURES
from fashion.settings.experiment import OPTIONS
from fashion.settings.metrics import DEFAULT_METRIC
from fashion.settings.tags import MODEL_TAG, TRIAL_TAG
from fashion.settings.task import HOMEPAGE
from fashion.tracking import store

MODELS_VIEW = "compare-models"
SWEEP_VIEW = "sweep"
# So many runs say which settings differ, of which so many are shown.
COMPARED_RUNS = 100
MOST_SETTINGS = 8
LOCAL_SERVER = "http://127.0.0.1:5000"
_PREFIX = "mlflow.sharedViewState."
_NOTE = f"""\
Image classifiers, trained and compared; on [Fashion-MNIST]({HOMEPAGE}) unless the setting `data` \
names other images.

The view **Compare models** shows which model is best, what it costs and what it gets wrong; the \
view **Sweep** shows the trials of hyperparameter searches. Parent runs sum up their children."""


def publish(experiment_id: str) -> None:
    """Describe an experiment and give it the views of its newest runs.

    A user without permission to change the experiment gets neither, and no error.
    """
    client = MlflowClient()
    with suppress(MlflowException):
        tags = client.get_experiment(experiment_id).tags
        for key, value in _tags(experiment_id).items():
            if tags.get(key) != value and not (key == MLFLOW_RUN_NOTE and key in tags):
                client.set_experiment_tag(experiment_id, key, value)


def advice(run_id: str, view: str = MODELS_VIEW) -> str:
    """Return where to look at a run among the others of its experiment, which gets the views.

    What was trained stays valid if the tracking store does not answer any more: then the advice is
    to look later.
    """
    try:
        with store.single_attempt():
            experiment_id = MlflowClient().get_run(run_id).info.experiment_id
            publish(experiment_id)
    except Exception as error:  # as in store.refusals
        return f"The tracking store does not answer now ({store.reason(error)}): look at it later."
    uri = mlflow.get_tracking_uri()
    server = uri.rstrip("/") if store.is_server() else LOCAL_SERVER
    link = (
        f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={view}"
        "&compareRunsMode=CHART&workflowType=machine_learning"
    )
    if store.is_server():
        return f"Compare the runs at\n  {link}"
    program = Path(sys.executable).with_name("mlflow")
    with suppress(ValueError):
        program = program.relative_to(Path.cwd())
    return (
        f"Compare the runs: start\n  {program} ui --backend-store-uri"
        f" {shlex.quote(store.without_credentials(uri))}\nand open\n  {link}"
    )


def _tags(experiment_id: str) -> dict[str, str]:
    """Return the tags of an experiment that describe it and hold its views."""
    return {
        MLFLOW_RUN_NOTE: _NOTE,
        "mlflow.experimentKind": "custom_model_development",
        MLFLOW_EXPERIMENT_PRIMARY_METRIC_NAME: DEFAULT_METRIC,
        MLFLOW_EXPERIMENT_PRIMARY_METRIC_GREATER_IS_BETTER: "True",
        _PREFIX + MODELS_VIEW: _shared(
            "Compare models", _models_view(_differing(experiment_id, MODEL_TAG))
        ),
        _PREFIX + SWEEP_VIEW: _shared("Sweep", _sweep_view(_differing(experiment_id, TRIAL_TAG))),
    }


def _differing(experiment_id: str, tag: str) -> list[str]:
    """Return the settings in which the newest runs with a tag differ, the model first."""
    newest = MlflowClient().search_runs(
        [experiment_id],
        f"tags.`{tag}` != ''",
        max_results=COMPARED_RUNS,
        order_by=["attributes.start_time DESC"],
    )
    values = {name: {run.data.params.get(name) for run in newest} for name in OPTIONS}
    # Networks without an option log none; that alone makes no difference worth an axis.
    differing = [name for name in OPTIONS if len(values[name] - {None}) > 1]
    return differing[:MOST_SETTINGS]


def _shared(name: str, state: dict[str, Any]) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    # A constant date, so that an unchanged view is not stored again.
    return json.dumps({"name": name, "createdAt": 0, "updatedAt": 0, "state": f"deflate;{packed}"})


def _models_view(differing: Sequence[str]) -> dict[str, Any]:
    settings = list(dict.fromkeys(["model", *differing]))
    best, wrong = "Which model is best?", "What does it get wrong?"
    charts = [
        _bar(best, "val_accuracy"),
        _bar(best, "test_accuracy"),
        _scatter(best, "train_seconds", "test_accuracy"),
        _lines(best, "val_accuracy", "Validation accuracy after each epoch"),
        _lines(best, "train_loss", "Training loss of each epoch"),
        _parallel(best, settings),
        *(_images(wrong, key) for key in PICTURES),
    ]
    columns = ["val_accuracy", "test_accuracy", "train_seconds"]
    # A picture of each model fits into one row.
    return _view({best: (3, 330), wrong: (1, 430)}, charts, columns, settings, MODEL_TAG)


def _sweep_view(searched: Sequence[str]) -> dict[str, Any]:
    found, course = "What was found?", "How did the trials go?"
    charts = [
        _parallel(found, searched),
        _bar(found, "val_accuracy", runs=50),
        *(_scatter(found, name, "val_accuracy", x_is="PARAM") for name in searched),
        _lines(course, "val_accuracy", "Validation accuracy after each epoch"),
        _lines(course, "train_loss", "Training loss of each epoch"),
    ]
    columns = ["val_accuracy", "val_loss"]
    return _view({found: (2, 360), course: (2, 360)}, charts, columns, searched, TRIAL_TAG)


def _view(
    sections: Mapping[str, tuple[int, int]],
    charts: Sequence[dict[str, Any]],
    metrics: Sequence[str],
    params: Sequence[str],
    tag: str,
) -> dict[str, Any]:
    """Return a view of the runs that have `tag`.

    Args:
        sections: by name, the number of charts side by side, and their height in pixels.
        charts: the charts of all sections.
        metrics, params: columns of the table.
        tag: the tag.
    """
    return {
        "compareRunSections": [
            {
                "uuid": name,
                "name": name,
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
                "columns": columns,
                "cardHeight": height,
            }
            for name, (columns, height) in sections.items()
        ],
        "compareRunCharts": [
            {"uuid": f"{index}", "deleted": False, "isGenerated": False, **chart}
            for index, chart in enumerate(charts)
        ],
        "isAccordionReordered": True,
        "compareRunsMode": "CHART",
        "viewMaximized": False,
        "hideEmptyCharts": True,
        # Any order but the default one lists child runs without their parents.
        "orderByKey": f"metrics.`{DEFAULT_METRIC}`",
        "orderByAsc": False,
        "searchFilter": f"tags.`{tag}` != ''",
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in metrics),
            *(f"params.`{name}`" for name in params),
        ],
    }


def _bar(section: str, metric: str, runs: int = 10) -> dict[str, Any]:
    return {
        "type": "BAR",
        "metricSectionId": section,
        "metricKey": metric,
        "runsCountToCompare": runs,
    }


def _scatter(section: str, x: str, y: str, x_is: str = "METRIC") -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "metricSectionId": section,
        "runsCountToCompare": 100,
        "xaxis": {"key": x, "type": x_is},
        "yaxis": {"key": y, "type": "METRIC"},
    }


def _lines(section: str, metric: str, title: str) -> dict[str, Any]:
    return {
        "type": "LINE",
        "metricSectionId": section,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "displayName": title,
        "runsCountToCompare": 20,
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "yAxisKey": "metric",
        "useGlobalXaxisKey": False,
    }


def _parallel(section: str, params: Sequence[str]) -> dict[str, Any]:
    return {
        "type": "PARALLEL",
        "metricSectionId": section,
        "runsCountToCompare": 50,
        "selectedParams": list(params),
        "selectedMetrics": [DEFAULT_METRIC],
        "showAllRuns": False,
    }


def _images(section: str, key: str) -> dict[str, Any]:
    return {
        "type": "IMAGE",
        "metricSectionId": section,
        "runsCountToCompare": 10,
        "imageKeys": [key],
        "step": 0,
        "showRunParams": False,
    }
