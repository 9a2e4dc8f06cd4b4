"""What a parent run shows of its children: the best one's metrics, the data, and a note."""

from collections.abc import Mapping, Sequence

import mlflow
import pandas as pd
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from fashion import advice
from fashion.analysis import markdown
from fashion.data.dataset import Dataset
from fashion.settings.metrics import METRICS, described, written
from fashion.settings.task import Task
from fashion.tracking.card import use_it
from fashion.tracking.records import log_lineage


def describe_comparison(
    table: pd.DataFrame,
    dataset: Dataset,
    named: Mapping[str, str],
    val_size: int,
    registration: str,
    *,
    registered: bool,
) -> None:
    """Log to the active run which child is best, and what all of them achieve.

    Args:
        table: the children, best first, from `query.runs` or `query.groups`.
        dataset: the dataset.
        named: the setting that names it in a command; none of the usual dataset.
        val_size: number of its training images that were held out.
        registration: what was registered and why, or why nothing was, one fact a line.
        registered: whether there is a champion to use.
    """
    best = table.iloc[0]
    shown = [name for name in table.columns if name.removesuffix("_mean") in METRICS]
    spreads = [name.removesuffix("_mean") + "_std" for name in shown if name.endswith("_mean")]
    mlflow.log_metrics({name: best[name] for name in [*shown, *spreads] if pd.notna(best[name])})
    log_lineage(*dataset.split(val_size), dataset.test)
    rows = [
        [_link(row["run_id"], row["model"]) if "run_id" in row else row["model"]]
        + [_cell(row, name) for name in ("val_accuracy", "test_accuracy", "train_seconds")]
        for _, row in table.iterrows()
    ]
    header = ["model", "validation accuracy", "test accuracy", "training time (s)"]
    _set_note(
        [
            f"### {best['model']} is the best of {len(table)} models",
            markdown.table(header, rows),
            markdown.picture(_active().info.run_id, "Comparison", "comparison.png"),
            *registration.splitlines(),
            *([_use_it(dataset.task)] if registered else []),
            f"**Again.** `{advice.command('main', **named)}`",
        ]
    )


def describe_seeds(spread: Mapping[str, tuple[float, float]]) -> None:
    """Say in the note of the active run, a parent of repetitions, how much they differ.

    Args:
        spread: the result of `records.log_spread`.
    """
    rows = [
        [name, f"{mean:.4f} ± {std:.4f}"] for name, (mean, std) in spread.items() if name in METRICS
    ]
    _set_note(
        [
            f"### {_active().info.run_name}",
            markdown.table(["metric", "mean ± standard deviation"], rows),
        ]
    )


def describe_sweep(run_id: str, trial: str, value: float, metric: str, again: str) -> None:
    """Say in the note of the active run, a sweep, which trial is best and how to train it again."""
    _set_note(
        [
            f"### Best trial: {_link(run_id, trial)}, {described(metric)} {written(metric, value)}",
            f"**Train it again, and test it.**\n\n```sh\n{again}\n```",
            markdown.picture(_active().info.run_id, "Trials", "parallel_coordinates.png"),
        ]
    )


def _set_note(paragraphs: Sequence[str]) -> None:
    mlflow.set_tag(MLFLOW_RUN_NOTE, markdown.text(paragraphs))


def _active() -> Run:
    run = mlflow.active_run()
    assert run is not None
    return run


def _use_it(task: Task) -> str:
    name = task.model_name
    return f"**Use the champion of [{name}](#/models/{name}).**\n\n{use_it(name, task)}"


def _link(run_id: str, text: str) -> str:
    return f"[{text}](#/experiments/{_active().info.experiment_id}/runs/{run_id})"


def _cell(row: pd.Series, name: str) -> str:
    grouped = f"{name}_mean" in row
    metric, value = METRICS[name], row[f"{name}_mean" if grouped else name]
    if pd.isna(value):
        return "-"
    unit = "%" if metric.scale == 100 else ""
    text = format(value * metric.scale, metric.spec)
    if grouped and pd.notna(row[f"{name}_std"]):
        text += f" ± {format(row[f'{name}_std'] * metric.scale, metric.spec)}"
    return f"{text} {unit}".rstrip()
