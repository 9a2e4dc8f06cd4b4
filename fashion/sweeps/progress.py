"""Show a sweep's progress: a live table on a terminal, else one line per finished trial."""

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from fashion.settings.metrics import METRICS, score
from fashion.sweeps.plan import Plan, Space

# Fits a small terminal.
ROWS = 20
ENDED = ("TERMINATED", "ERROR")

Row = tuple[str, str, int, float | None, dict[str, Any]]


class TrialTable:
    """Display of the trials, for use as a context manager."""

    def __init__(self, space: Space, plan: Plan) -> None:
        self._options, self._epochs, self._metric = space.searched, plan.epochs, plan.metric
        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=2)
        self._printed: set[str] = set()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def show(self, rows: Sequence[Row]) -> None:
        """Show the trials: (name, status, epochs trained, metric, configuration)."""
        if self._console.is_terminal:
            self._live.update(self._table(rows))
            return
        for name, status, epoch, value, config in rows:
            if status in ENDED and name not in self._printed:
                self._printed.add(name)
                what = " ".join(f"{option}={_short(config[option])}" for option in self._options)
                print(
                    f"trial {name}: {_status(status, epoch, self._epochs)},"
                    f" {self._value(value)}: {what}",
                    flush=True,
                )

    def _table(self, rows: Sequence[Row]) -> Table:
        table = Table(box=None, caption=_count(rows), caption_justify="left")
        for heading in ("trial", "", "ep.", METRICS[self._metric].header, *self._options):
            table.add_column(heading, no_wrap=True, justify="right" if heading != "" else "left")
        best_first = sorted(rows, key=lambda row: (row[1] in ENDED, -self._merit(row[3])))
        for name, status, epoch, value, config in best_first[:ROWS]:
            table.add_row(
                name,
                _status(status, epoch, self._epochs),
                str(epoch),
                self._value(value),
                *(_short(config[option]) for option in self._options),
            )
        return table

    def _value(self, value: float | None) -> str:
        metric = METRICS[self._metric]
        return "-" if value is None else format(value * metric.scale, metric.spec)

    def _merit(self, value: float | None) -> float:
        return -math.inf if value is None else score(self._metric, value)


def _count(rows: Sequence[Row]) -> str:
    ended = sum(status in ENDED for _, status, *_ in rows)
    return f"{ended} of {len(rows)} trials have ended"


def _status(status: str, epoch: int, epochs: int) -> str:
    if status == "TERMINATED":
        return "finished" if epoch >= epochs else "stopped early"
    return "failed" if status == "ERROR" else status.lower()


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
