"""Query training runs into a pandas table, and show it."""

import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from mlflow.entities import LifecycleStage, Run
from mlflow.exceptions import MlflowException
from rich import box
from rich.cells import cell_len
from rich.table import Table

from fashion import terminal
from fashion.errors import FashionError
from fashion.files import replacing

# Columns of the table by where MLflow keeps them; the order is the order of the columns.
METRICS = [
    "val_accuracy",
    "val_loss",
    "test_accuracy",
    "test_loss",
    "train_seconds",
    "images_per_second",
]
NUMBERS = [
    "num_parameters",
    "epochs",
    "batch_size",
    "lr",
    "hidden_units",
    "blocks",
    "dropout",
    "val_size",
    "seed",
    "momentum",
    "weight_decay",
    "warmup_epochs",
    "label_smoothing",
    "clip_norm",
    "ema_decay",
    "patience",
    "mixup",
    "freeze_epochs",
]
SWITCHES = ["batch_norm", "nesterov"]
NAMES = [*SWITCHES, "optimizer", "schedule", "augment", "precision", "pretrained"]
PARAMS = [*NUMBERS, *NAMES]
ATTRIBUTES = ["run_name", "run_id", "status", "start_time"]
COLUMNS = ["model", *METRICS, *PARAMS, *ATTRIBUTES]
# Runs that share all of these are repetitions of one experiment, apart from their seed.
GROUP_KEY = ["model", *(name for name in PARAMS if name not in ("seed", "num_parameters"))]
ALL = "all"
NEWEST_FIRST = ["attributes.start_time DESC"]
FINISHED = "attributes.status = 'FINISHED'"
UNFINISHED = "attributes.status != 'FINISHED'"
FORMATS = ["table", "markdown", "csv", "json", "html"]

MODEL_WIDTH = 15
# What a table that is too wide does without, in this order.
EXPENDABLE = ["images_per_second", "val_loss", "test_loss", "train_seconds"]


class _Style(NamedTuple):
    """How the terminal shows a metric: under what, times what, in which format."""

    header: str
    scale: int
    spec: str


STYLES = {
    "val_accuracy": _Style("val %", 100, ".2f"),
    "val_loss": _Style("val\nloss", 1, ".4f"),
    "test_accuracy": _Style("test %", 100, ".2f"),
    "test_loss": _Style("test\nloss", 1, ".4f"),
    "train_seconds": _Style("train s", 1, ".1f"),
    "images_per_second": _Style("img/s", 1, ",.0f"),
}


class CompareError(FashionError):
    """The query makes no sense to the tracking store."""


@dataclass(frozen=True)
class Query:
    """Which runs to compare.

    Attributes:
        experiments: names, or `ALL` alone; empty means the active experiment.
        filter_string: MLflow's search syntax, for example "params.seed = '42'".
        models: only these models; empty means all.
        metric: one of `METRICS`, which orders the runs, best first.
        top: at most so many runs (or groups).
        latest_per_model: only the run of each model that started last.
    """

    experiments: Sequence[str] = ()
    filter_string: str = ""
    models: Sequence[str] = ()
    metric: str = "val_accuracy"
    top: int = 20
    latest_per_model: bool = False


def lower_is_better(metric: str) -> bool:
    """Tell losses and times from accuracies and rates."""
    return metric.endswith(("_loss", "_seconds"))


def runs(query: Query) -> pd.DataFrame:
    """Return the runs of `query` as `COLUMNS`: finished ones first, and of those the best first.

    Runs that lack the metric come after their peers. The tracking store filters, orders and
    limits.

    Raises:
        CompareError: an experiment does not exist, or the filter is not valid.
    """
    experiments = _experiment_ids(query)
    if query.latest_per_model:
        found = _latest_of_each_model(query, experiments)
    else:
        direction = "ASC" if lower_is_better(query.metric) else "DESC"
        order = [f"metrics.{query.metric} {direction}", "attributes.start_time ASC"]
        found = [
            run
            for conditions in _by_model(query.models)
            for status in (FINISHED, UNFINISHED)
            for run in _search(query, experiments, [*conditions, status], order, query.top)
        ]
    return _best_first(_table(found), query.metric).head(query.top)


def groups(query: Query) -> pd.DataFrame:
    """Return mean and standard deviation over the seeds of each experiment, best first.

    A group is the finished runs that share `GROUP_KEY`. Of several runs with one seed the latest
    counts: a repetition of the same seed is no further evidence. The standard deviation is the
    sample's (n - 1) and NaN for a single seed. Both are NaN where one seed lacks the metric, or
    diverged: they would be those of the seeds that went well.

    Returns:
        One row a group: `GROUP_KEY`, num_parameters, n, then METRIC_mean and METRIC_std for each
        of `METRICS`.

    Raises:
        CompareError: as for `runs`.
    """
    experiments = _experiment_ids(query)
    finished = [
        run
        for conditions in _by_model(query.models)
        for run in _search(query, experiments, [*conditions, FINISHED], NEWEST_FIRST)
    ]
    table = _table(finished).drop_duplicates([*GROUP_KEY, "seed"])
    mean = partial(pd.Series.mean, skipna=False)
    std = partial(pd.Series.std, skipna=False)
    statistics: dict[str, Any] = {
        "num_parameters": ("num_parameters", "first"),
        "n": ("seed", "size"),
        **{f"{metric}_mean": (metric, mean) for metric in METRICS},
        **{f"{metric}_std": (metric, std) for metric in METRICS},
    }
    summary = table.groupby(GROUP_KEY, dropna=False).agg(**statistics).reset_index()
    return _best_first(summary, f"{query.metric}_mean").head(query.top)


def _best_first(table: pd.DataFrame, column: str) -> pd.DataFrame:
    ascending = lower_is_better(column.removesuffix("_mean"))
    table = table.sort_values(column, ascending=ascending, kind="stable")
    if "status" in table:
        table = table.sort_values("status", key=lambda status: status != "FINISHED", kind="stable")
    return table.reset_index(drop=True)


def _experiment_ids(query: Query) -> list[str] | None:
    """Return the ids of the experiments; [] stands for the active one and None for all of them."""
    if list(query.experiments) == [ALL]:
        return None
    ids = []
    for name in query.experiments:
        # MLflow's own search leaves out a name that it does not know.
        experiment = mlflow.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise CompareError(f"there is no experiment {name!r} in the tracking store")
        ids.append(experiment.experiment_id)
    return ids


def _by_model(models: Sequence[str]) -> list[list[str]]:
    """Return the conditions of one search for each model; no condition where all are wanted."""
    for model in models:
        if not re.fullmatch(r"[\w:.-]+", model):
            raise CompareError(f"{model!r} is no model name")
    return [[f"tags.model = '{model}'"] for model in dict.fromkeys(models)] or [[]]


def _latest_of_each_model(query: Query, experiments: list[str] | None) -> list[Run]:
    if query.models:
        return [
            run
            for conditions in _by_model(query.models)
            for run in _search(query, experiments, conditions, NEWEST_FIRST, 1)
        ]
    # The store cannot group: ask for the newest run of any model that has not been seen yet.
    found: list[Run] = []
    others: list[str] = []
    while newest := _search(query, experiments, others, NEWEST_FIRST, 1):
        found += newest
        others.append(f"tags.model != '{newest[0].data.tags['model']}'")
    return found


def _search(
    query: Query,
    experiments: list[str] | None,
    conditions: Sequence[str],
    order: list[str],
    limit: int = sys.maxsize,
) -> list[Run]:
    """Return the training runs that fulfil `conditions` and the query's filter.

    Raises:
        CompareError: the filter is not valid.
    """
    filters = ["tags.model LIKE '%'", *conditions, query.filter_string]
    try:
        return mlflow.search_runs(
            experiment_ids=experiments,
            search_all_experiments=experiments is None,
            filter_string=" and ".join(filter(None, filters)),
            max_results=limit,
            order_by=order,
            output_format="list",
        )
    except MlflowException as error:
        raise CompareError(str(error).splitlines()[0]) from error


def _table(found: Sequence[Run]) -> pd.DataFrame:
    rows = [
        {
            "model": run.data.tags["model"],
            **{name: run.data.metrics.get(name, math.nan) for name in METRICS},
            **{name: run.data.params.get(name) for name in PARAMS},
            "run_name": run.info.run_name,
            "run_id": run.info.run_id,
            "status": run.info.status,
            "start_time": pd.Timestamp(run.info.start_time, unit="ms", tz="UTC"),
        }
        for run in found
    ]
    table = pd.DataFrame(rows, columns=COLUMNS)
    # MLflow stores parameters as text: "0.10" typed at the command line is the number 0.1. The
    # conversion of dtypes keeps whole numbers whole where another run lacks the parameter.
    table[NUMBERS] = table[NUMBERS].apply(pd.to_numeric, errors="coerce").convert_dtypes()
    table[NAMES] = table[NAMES].astype("string")
    table[SWITCHES] = table[SWITCHES].apply(lambda values: values.str.lower())
    return table.astype(dict.fromkeys(METRICS, float))


def render(table: pd.DataFrame, output_format: str, metric: str = "val_accuracy") -> str:
    """Return `runs` or `groups`, ordered by `metric`, as text in one of `FORMATS`.

    "table" is for a terminal of 80 columns and keeps to the most telling columns, `metric` among
    them; the others hold them all.
    """
    if output_format == "table":
        return _terminal(table, metric)
    if output_format == "markdown":
        return _markdown(table)
    if output_format == "csv":
        return table.to_csv(index=False)
    if output_format == "html":
        return table.map(_plain).to_html(index=False, border=0) + "\n"
    return table.to_json(orient="records", date_format="iso", double_precision=15, indent=2) + "\n"


def write(table: pd.DataFrame, output_format: str, path: Path, metric: str) -> None:
    """Write `render`'s text to a file.

    Raises:
        files.FileError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write_text(render(table, output_format, metric), encoding="utf-8")


def _markdown(table: pd.DataFrame) -> str:
    rows = table.map(_plain).itertuples(index=False)
    lines = [list(table.columns), ["---"] * len(table.columns), *map(list, rows)]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _plain(value: Any) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _terminal(table: pd.DataFrame, metric: str) -> str:
    if table.empty:
        return "No runs found: train some first, or widen the query.\n"
    cells = _group_cells if "n" in table else _run_cells
    rows = [cells(row, metric) for _, row in table.iterrows()]
    columns = {header: [row[header] for row in rows] for header in rows[0]}
    for name in EXPENDABLE:
        if name != metric and _width(columns) > terminal.WIDTH:
            columns.pop(STYLES[name].header, None)
    rich_table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for header in columns:
        # Only a model's name may take several lines, so that no number is cut.
        rich_table.add_column(
            header,
            justify="left" if header in ("model", "run") else "right",
            overflow="fold",
            no_wrap=header != "model",
        )
    for texts in zip(*columns.values(), strict=True):
        rich_table.add_row(*texts)
    return terminal.render(rich_table)


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Return how wide a table is whose models' names are folded to `MODEL_WIDTH`."""
    widths = {
        header: max(cell_len(line) for text in (header, *texts) for line in text.split("\n"))
        for header, texts in columns.items()
    }
    widths["model"] = min(widths["model"], MODEL_WIDTH)
    return sum(widths.values()) + len(widths) - 1


def _run_cells(row: pd.Series, _metric: str) -> dict[str, str]:
    metrics = {
        style.header: _number(row[name] * style.scale, style.spec) for name, style in STYLES.items()
    }
    # A run that did not finish says so where its result would stand.
    if row["status"] != "FINISHED":
        metrics[STYLES["test_accuracy"].header] = row["status"]
    return {
        "model": row["model"],
        **metrics,
        "params": _number(row["num_parameters"], ",.0f"),
        "ep.": _number(row["epochs"], ".0f"),
        "seed": "-" if pd.isna(row["seed"]) else f"{row['seed']:.0f}",
        "run": row["run_id"][:8],
    }


def _group_cells(row: pd.Series, metric: str) -> dict[str, str]:
    shown = dict.fromkeys(["val_accuracy", "test_accuracy", metric, "train_seconds"])
    return {
        "model": row["model"],
        "n": str(row["n"]),
        **{STYLES[name].header: _spread(row, name) for name in shown},
        "ep.": _number(row["epochs"], ".0f"),
        "batch": _number(row["batch_size"], ".0f"),
        "lr": _number(row["lr"], "g"),
        "hidden": _number(row["hidden_units"], ".0f"),
        "val\nsize": _number(row["val_size"], ".0f"),
    }


def _spread(row: pd.Series, name: str) -> str:
    _, scale, spec = STYLES[name]
    mean, std = row[f"{name}_mean"] * scale, row[f"{name}_std"] * scale
    return _number(mean, spec) if pd.isna(std) else f"{_number(mean, spec)}±{_number(std, spec)}"


def _number(value: float, spec: str) -> str:
    """Format a number in at most 7 characters: 1.23e6 where `spec` would take more."""
    if pd.isna(value):
        return "-"
    text = format(value, spec)
    return text if len(text) <= 7 else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.3g}")
