"""Format a table of runs or groups for a terminal, or as Markdown, CSV, JSON or HTML."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.cells import cell_len
from rich.table import Table

from fashion import terminal
from fashion.analysis import spreadsheet
from fashion.errors import printable
from fashion.files import replacing
from fashion.settings.experiment import OPTIONS
from fashion.settings.metrics import DEFAULT_METRIC, METRICS

MODEL_WIDTH = 15
# Columns to omit, in this order, from a table that is too wide: metrics, then others.
EXPENDABLE = ["images_per_second", "val_loss", "test_loss", "train_seconds"]
LESS_EXPENDABLE = ["params", "started", "name"]


def render(table: pd.DataFrame, output_format: str, metric: str = DEFAULT_METRIC) -> str:
    """Return a table of runs or groups, sorted by `metric`, as text in one of `TABLE_FORMATS`.

    "table" fits a terminal of 80 columns and shows the most important columns, including `metric`;
    the other formats contain every column.
    """
    if output_format == "table":
        return _terminal(table, metric)
    if output_format == "markdown":
        return _markdown(table)
    if output_format == "csv":
        return spreadsheet.harmless(table).to_csv(index=False)
    if output_format == "html":
        return table.map(_plain).to_html(index=False, border=0) + "\n"
    return table.to_json(orient="records", date_format="iso", double_precision=15, indent=2) + "\n"


def write(table: pd.DataFrame, output_format: str, path: Path, metric: str) -> None:
    """Write the result of `render` to a file.

    Raises:
        files.FileError: the file cannot be written.
    """
    with replacing(path) as file:
        file.write_text(render(table, output_format, metric), encoding="utf-8")


def _markdown(table: pd.DataFrame) -> str:
    rows = table.map(_plain).map(_markdown_text).itertuples(index=False)
    lines = [list(table.columns), ["---"] * len(table.columns), *map(list, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _markdown_text(text: str) -> str:
    """Escape what Markdown would take for the end of a cell, HTML, a link, emphasis or code."""
    return re.sub(r"([\\|`*_~\[\]])", r"\\\1", html.escape(printable(text), quote=False))


def _plain(value: Any) -> str:
    if pd.isna(value):
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _terminal(table: pd.DataFrame, metric: str) -> str:
    if table.empty:
        return "No runs found: train some first, or relax the query.\n"
    cells, differing = _group_cells if "n" in table else _run_cells, _differing(table)
    rows = [cells(row, metric, differing) for _, row in table.iterrows()]
    note = "" if "n" in table else _mark_other_images(table, rows)
    columns = {header: [row[header] for row in rows] for header in rows[0]}
    if not any(columns.get("name", [])):
        columns.pop("name", None)
    expendable = [METRICS[name].header for name in EXPENDABLE if name != metric]
    # The last settings are those that are changed most rarely.
    for header in [*expendable, *LESS_EXPENDABLE, *map(_header, reversed(differing))]:
        if _width(columns) > terminal.WIDTH:
            columns.pop(header, None)
    rich_table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for header in columns:
        rich_table.add_column(
            header,
            justify="left" if header in ("model", "run", "name") else "right",
            overflow="fold",
            # Only model names are wrapped, so that no number is truncated.
            no_wrap=header != "model",
        )
    for texts in zip(*columns.values(), strict=True):
        rich_table.add_row(*texts)
    return terminal.render(rich_table) + note


def _mark_other_images(table: pd.DataFrame, rows: Sequence[dict[str, str]]) -> str:
    """Mark validation results that cannot be compared with those on the largest validation set.

    The digest of the training images says which others were held out.

    Returns:
        A line that explains the mark; empty if all were measured on the same images.
    """
    validated = table["val_accuracy"].notna()
    sizes = table["val_size"].where(validated)
    digests = table["train_digest"].where(validated)
    most = digests[sizes == sizes.max()].dropna()
    others = (sizes.notna() & (sizes != sizes.max())) | (
        digests.notna() & (digests != (most.iloc[0] if len(most) else None))
    )
    for cells, marked in zip(rows, others, strict=True):
        cells[METRICS["val_accuracy"].header] += "*" * bool(marked)
    return f"* not on the {sizes.max():,} validation images of the others\n" if others.any() else ""


def _width(columns: Mapping[str, Sequence[str]]) -> int:
    """Return the width of a table with model names wrapped to `MODEL_WIDTH`."""
    widths = {
        header: max(cell_len(line) for text in (header, *texts) for line in text.split("\n"))
        for header, texts in columns.items()
    }
    widths["model"] = min(widths["model"], MODEL_WIDTH)
    return sum(widths.values()) + len(widths) - 1


def _run_cells(row: pd.Series, metric: str, differing: Sequence[str]) -> dict[str, str]:
    metrics = {
        style.header: _number(row[name] * style.scale, style.spec)
        for name, style in METRICS.items()
        if style.shown or name == metric
    }
    # Unfinished runs show their status in place of the result.
    if row["status"] != "FINISHED":
        metrics[METRICS["test_accuracy"].header] = row["status"]
    return {
        "model": printable(row["model"]),
        **metrics,
        "params": _number(row["num_parameters"], ",.0f"),
        **{_header(name): _setting(row[name], name) for name in differing},
        "name": "" if row["run_name"] == row["model"] else printable(row["run_name"] or ""),
        "started": f"{row['start_time']:%m-%d %H:%M}",
        "run": row["run_id"][:8],
    }


def _group_cells(row: pd.Series, metric: str, differing: Sequence[str]) -> dict[str, str]:
    shown = dict.fromkeys(["val_accuracy", "test_accuracy", metric, "train_seconds"])
    return {
        "model": printable(row["model"]),
        "n": str(row["n"]),
        **{METRICS[name].header: _spread(row, name) for name in shown},
        **{_header(name): _setting(row[name], name) for name in differing},
    }


def _differing(table: pd.DataFrame) -> list[str]:
    """Return the settings that have several values in a table."""
    # Networks without an option log none; that alone makes no difference worth a column.
    return [
        name
        for name in OPTIONS
        if name != "model" and name in table and table[name].nunique(dropna=True) > 1
    ]


def _header(setting: str) -> str:
    return setting.replace("_", "\n")


def _setting(value: Any, name: str) -> str:
    if pd.isna(value):
        return "-"
    if name == "data":
        value = Path(value).name  # of a folder
    return f"{value:g}" if isinstance(value, float) else printable(str(value))


def _spread(row: pd.Series, name: str) -> str:
    scale, spec = METRICS[name].scale, METRICS[name].spec
    mean, std = row[f"{name}_mean"] * scale, row[f"{name}_std"] * scale
    return _number(mean, spec) if pd.isna(std) else f"{_number(mean, spec)}±{_number(std, spec)}"


def _number(value: float, spec: str) -> str:
    """Format a number in at most 7 characters: as 1.23e6 if `spec` gives more."""
    if pd.isna(value):
        return "-"
    text = format(value, spec)
    return text if len(text) <= 7 else re.sub(r"e\+?(-?)0*", r"e\1", f"{value:.3g}")
