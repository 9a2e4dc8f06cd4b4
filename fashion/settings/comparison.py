"""Which runs to compare, and the formats of the resulting table."""

from collections.abc import Sequence
from dataclasses import dataclass

from fashion.settings.metrics import DEFAULT_METRIC, METRICS
from fashion.settings.option import option, options_of

TABLE_FORMATS = ("table", "markdown", "csv", "json", "html")


@dataclass(frozen=True)
class Query:
    """Which runs to compare, and in which order.

    Attributes:
        experiments: names, or "all" alone; empty means the active experiment.
        filter_string: MLflow's search syntax, for example "params.seed = '42'".
        models: names of the models to include; empty means all.
        metric: one of `METRICS`; runs are sorted by it, best first.
        top: maximum number of rows (runs or groups).
        latest_per_model: only the most recently started run of each model.
    """

    experiments: Sequence[str] = ()
    filter_string: str = ""
    models: Sequence[str] = ()
    metric: str = option(
        DEFAULT_METRIC,
        f"Metric to sort the runs by, best first: {', '.join(METRICS)}.",
        choices=tuple(METRICS),
        metavar="METRIC",
    )
    top: int = option(20, "Maximum number of rows.", min=1)
    latest_per_model: bool = option(False, "Only the most recent run of each model.")


QUERY_OPTIONS = options_of(Query)
