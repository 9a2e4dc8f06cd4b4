"""Query training runs into a pandas table, and show it."""

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from rich import box
from rich.console import Console
from rich.table import Table

from fashion.errors import FashionError

# Columns of the table by where MLflow keeps them; the order is the order of the columns.
METRICS = [
    "val_accuracy",
    "val_loss",
    "test_accuracy",
    "test_loss",
    "train_seconds",
    "images_per_second",
]
PARAMS = ["num_parameters", "epochs", "batch_size", "lr", "hidden_units", "val_size", "seed"]
ATTRIBUTES = ["run_name", "run_id", "status", "start_time"]
COLUMNS = ["model", *METRICS, *PARAMS, *ATTRIBUTES]
# Runs that share all of these are repetitions of one experiment, apart from their seed.
GROUP_KEY = ["model", *(name for name in PARAMS if name not in ("seed", "num_parameters"))]
ALL = "all"
NEWEST_FIRST = "attributes.start_time DESC"
FORMATS = ["table", "markdown", "csv", "json", "html"]


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
    """Return the runs of `query` as `COLUMNS`, best first; those without the metric come last.

    The tracking store filters, orders and limits: no more runs are fetched than are returned, or,
    for the latest of each model, than there are models times `query.top`.

    Raises:
        CompareError: an experiment does not exist, or the filter is not valid.
    """
    if query.latest_per_model:
        found = [
            _search(query, model, "attributes.start_time DESC", 1) for model in _model_names(query)
        ]
    else:
        direction = "ASC" if lower_is_better(query.metric) else "DESC"
        order = f"metrics.{query.metric} {direction}"
        found = [_search(query, model, order, query.top) for model in query.models or [None]]
    return _best_first(pd.concat(found, ignore_index=True), query.metric).head(query.top)


def groups(query: Query) -> pd.DataFrame:
    """Return mean and standard deviation over the seeds of each experiment, best first.

    A group is the finished runs that share `GROUP_KEY`. Of several runs with one seed the latest
    counts: a repetition of the same seed is no further evidence. The standard deviation is the
    sample's (n - 1) and NaN for a single seed.

    Returns:
        One row a group: `GROUP_KEY`, num_parameters, n, then METRIC_mean and METRIC_std for each
        of `METRICS`.

    Raises:
        CompareError: as for `runs`.
    """
    finished = [
        _search(query, model, "attributes.start_time DESC", None)
        for model in query.models or [None]
    ]
    table = pd.concat(finished, ignore_index=True)
    table = table[table["status"] == "FINISHED"].drop_duplicates([*GROUP_KEY, "seed"])
    grouped = table.groupby(GROUP_KEY, dropna=False)
    summary = grouped.agg(
        num_parameters=("num_parameters", "first"),
        n=("seed", "nunique"),
        **{f"{m}_mean": (m, "mean") for m in METRICS},
        **{f"{m}_std": (m, "std") for m in METRICS},
    ).reset_index()
    return _best_first(summary, f"{query.metric}_mean").head(query.top)


def _best_first(table: pd.DataFrame, column: str) -> pd.DataFrame:
    ascending = lower_is_better(column.removesuffix("_mean"))
    return table.sort_values(column, ascending=ascending, kind="stable", ignore_index=True)


def _model_names(query: Query) -> Sequence[str]:
    if query.models:
        return query.models
    from fashion.models import MODELS

    return list(MODELS)


def _search(query: Query, model: str | None, order: str, limit: int | None) -> pd.DataFrame:
    """Fetch at most `limit` runs of one model (None: of all) as `COLUMNS`; of equals the oldest."""
    if model is not None and not re.fullmatch(r"[\w:.-]+", model):
        raise CompareError(f"{model!r} is no model name")
    everywhere = list(query.experiments) == [ALL]
    conditions = [f"tags.model = '{model}'" if model else "tags.model LIKE '%'"]
    if query.filter_string:
        conditions.append(query.filter_string)
    try:
        found = mlflow.search_runs(
            experiment_names=None if everywhere else list(query.experiments) or None,
            search_all_experiments=everywhere,
            filter_string=" and ".join(conditions),
            order_by=[order, "attributes.start_time ASC"],
            output_format="list",
            **({"max_results": limit} if limit else {}),
        )
    except MlflowException as error:
        raise CompareError(str(error).splitlines()[0]) from error
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
    # MLflow stores parameters as text: "0.10" typed at the command line is the number 0.1.
    table[PARAMS] = table[PARAMS].apply(pd.to_numeric, errors="coerce")
    return table.astype(dict.fromkeys(METRICS, float))


def render(table: pd.DataFrame, output_format: str) -> str:
    """Return `runs` or `groups` as text in one of `FORMATS`.

    "table" is for a terminal of 80 columns and keeps to the most telling columns; the others hold
    them all.
    """
    if output_format == "table":
        return _terminal(table)
    if output_format == "markdown":
        return _markdown(table)
    if output_format == "csv":
        return table.to_csv(index=False)
    if output_format == "html":
        return table.to_html(index=False, border=0)
    return table.to_json(orient="records", date_format="iso", indent=2) + "\n"


def write(table: pd.DataFrame, output_format: str, path: Path) -> None:
    """Write `render`'s text to a file.

    Raises:
        CompareError: the file cannot be written.
    """
    try:
        path.write_text(render(table, output_format), encoding="utf-8")
    except OSError as error:
        raise CompareError(f"cannot write {path}: {error.strerror}") from error


def _markdown(table: pd.DataFrame) -> str:
    lines = [table.columns, ["---"] * len(table.columns), *table.itertuples(index=False)]
    cells = ([_plain(value).replace("|", "\\|") for value in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _plain(value: object) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _terminal(table: pd.DataFrame) -> str:
    if table.empty:
        return "No runs found: train some first, or widen the query.\n"
    rich_table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    rows = _group_cells(table) if "n" in table else _run_cells(table)
    for name in rows[0]:
        rich_table.add_column(name, justify="left" if name in ("model", "run") else "right")
    for row in rows:
        rich_table.add_row(*row.values())
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(rich_table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _run_cells(table: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "model": row["model"],
            "val %": _number(row["val_accuracy"] * 100, ".2f"),
            # A run that did not finish says so where its result would stand.
            "test %": (
                _number(row["test_accuracy"] * 100, ".2f")
                if row["status"] == "FINISHED"
                else row["status"]
            ),
            "test loss": _number(row["test_loss"], ".4f"),
            "train s": _number(row["train_seconds"], ".1f"),
            "img/s": _number(row["images_per_second"], ",.0f"),
            "params": _number(row["num_parameters"], ",.0f"),
            "ep.": _number(row["epochs"], ".0f"),
            "seed": _number(row["seed"], ".0f"),
            "run": row["run_id"][:8],
        }
        for _, row in table.iterrows()
    ]


def _group_cells(table: pd.DataFrame) -> list[dict[str, str]]:
    return [
        {
            "model": row["model"],
            "n": str(row["n"]),
            "val %": _spread(row, "val_accuracy", 100, ".2f"),
            "test %": _spread(row, "test_accuracy", 100, ".2f"),
            "train s": _spread(row, "train_seconds", 1, ".1f"),
            "params": _number(row["num_parameters"], ",.0f"),
            "ep.": _number(row["epochs"], ".0f"),
            "lr": _number(row["lr"], "g"),
            "val size": _number(row["val_size"], ".0f"),
        }
        for _, row in table.iterrows()
    ]


def _number(value: float, spec: str) -> str:
    return "-" if pd.isna(value) else format(value, spec)


def _spread(row: pd.Series, metric: str, scale: float, spec: str) -> str:
    mean, std = row[f"{metric}_mean"] * scale, row[f"{metric}_std"] * scale
    return _number(mean, spec) if pd.isna(std) else f"{_number(mean, spec)}±{_number(std, spec)}"
