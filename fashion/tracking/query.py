"""Query training runs and return them as a pandas table."""

import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import mlflow
import pandas as pd
from mlflow.entities import LifecycleStage, Run
from mlflow.environment_variables import MLFLOW_EXPERIMENT_NAME
from mlflow.exceptions import MlflowException

from fashion.errors import FashionError, printable
from fashion.settings.comparison import Query
from fashion.settings.experiment import DEFAULTS, LOGGED
from fashion.settings.metrics import METRICS
from fashion.settings.tags import ENVIRONMENT_TAGS, MODEL_TAG
from fashion.tracking import search

# Columns of parameters are in the order of their declaration.
PARAMS = [name for name in LOGGED if name != "model"]
NUMBERS = [name for name in PARAMS if LOGGED[name].kind in (int, float)]
NAMES = [name for name in PARAMS if name not in NUMBERS]
SWITCHES = [name for name in PARAMS if LOGGED[name].kind is bool]
ATTRIBUTES = ["run_name", "run_id", "status", "start_time"]
# Settings that earlier versions of this project did not have, nor log: all runs had these.
NEWER = {name: DEFAULTS[name] for name in ("data", "class_weights")}
COLUMNS = ["model", *METRICS, *PARAMS, *ATTRIBUTES]
# Runs with equal values of all of these are repetitions of one experiment.
GROUP_KEY = [name for name, option in LOGGED.items() if option.decides]
ALL = "all"
# An id, or its first characters as tables of runs show them.
RUN_ID = "[0-9a-f]{8,32}"
NEWEST_FIRST = ["attributes.start_time DESC"]
FINISHED = "attributes.status = 'FINISHED'"
UNFINISHED = "attributes.status != 'FINISHED'"


class CompareError(FashionError):
    """The tracking store rejects the query."""


def check_models(query: Query) -> None:
    """Check that there are runs of each model of `query`, whatever its filter: a typo has none.

    Raises:
        CompareError: there are none of one of them, or an experiment does not exist.
    """
    experiments = _experiment_ids(query)
    every = replace(query, filter_string="")
    for model in query.models:
        if not _search(every, experiments, [_model_is("=", model)], NEWEST_FIRST, 1):
            others = [run.data.tags["model"] for run in _latest_of_all_models(every, experiments)]
            there = f"there are runs of {', '.join(sorted(others))}" if others else "there are none"
            raise CompareError(printable(f"no run of the model {model}: {there}"))


def runs(query: Query) -> pd.DataFrame:
    """Return the runs of `query` with `COLUMNS`: finished runs first, each part best first.

    Runs without the metric come last in their part. The tracking store does the filtering, sorting
    and limiting.

    Raises:
        CompareError: an experiment does not exist, or the filter is not valid.
    """
    experiments = _experiment_ids(query)
    if query.latest_per_model:
        found = _latest_of_each_model(query, experiments)
    else:
        direction = "ASC" if METRICS[query.metric].lower_is_better else "DESC"
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

    A group consists of the finished runs with equal `GROUP_KEY`. Of several runs with the same seed
    only the latest counts, because repeating a seed adds no information. The standard deviation is
    the sample's (n - 1), and NaN for a single seed. Both are NaN if a seed lacks the metric or
    diverged; without that seed they would be too optimistic.

    Returns:
        One row per group: `GROUP_KEY`, num_parameters, n, and METRIC_mean and METRIC_std for each
        of `METRICS`.

    Raises:
        CompareError: as for `runs`.
    """
    experiments = _experiment_ids(query)
    finished = [
        run
        for conditions in _by_model(query.models)
        for run in _search_all(query, experiments, [*conditions, FINISHED])
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


def model_uri(text: str) -> str:
    """Return the URI of a run's model.

    Args:
        text: the first 8 or more characters of the run's id, as tables of runs show it. Anything
            else is a URI, and returned itself.

    Raises:
        CompareError: no run, or more than one, has such an id.
        RegistryError: the run logged no model.
    """
    if not re.fullmatch(RUN_ID, text):
        return text
    from fashion.tracking import models  # imports torch, which takes seconds

    return models.model_uri(run(text))


def run(beginning: str) -> Run:
    """Return the run whose id has this beginning, of 8 or more characters.

    Raises:
        CompareError: there is none, or more than one.
    """
    if not re.fullmatch(RUN_ID, beginning):
        raise CompareError(f"{beginning} is not the id of a run, or its first 8 characters")
    found = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"attributes.run_id LIKE '{beginning}%'",
        output_format="list",
    )
    if len(found) != 1:
        several = " and ".join(each.info.run_id for each in found)
        problem = f"is the beginning of {several}" if found else "is no run of this tracking store"
        raise CompareError(f"{beginning} {problem}")
    return found[0]


def _best_first(table: pd.DataFrame, column: str) -> pd.DataFrame:
    ascending = METRICS[column.removesuffix("_mean")].lower_is_better
    table = table.sort_values(column, ascending=ascending, kind="stable")
    if "status" in table:
        table = table.sort_values("status", key=lambda status: status != "FINISHED", kind="stable")
    return table.reset_index(drop=True)


def _experiment_ids(query: Query) -> list[str] | None:
    """Return the ids of the experiments: [] means the active one, None means all."""
    if list(query.experiments) == [ALL]:
        return None
    # MLflow would create the experiment that the environment names if it does not exist, and its
    # search silently ignores unknown names.
    active = MLFLOW_EXPERIMENT_NAME.get()
    ids = []
    for name in query.experiments or ([active] if active else []):
        experiment = mlflow.get_experiment_by_name(name)
        if experiment is None or experiment.lifecycle_stage != LifecycleStage.ACTIVE:
            raise CompareError(f"the tracking store has no experiment {name!r}")
        ids.append(experiment.experiment_id)
    return ids


def _by_model(models: Sequence[str]) -> list[list[str]]:
    """Return the search conditions for each model; one search without conditions for all models."""
    return [[_model_is("=", model)] for model in dict.fromkeys(models)] or [[]]


def _model_is(operator: str, model: str) -> str:
    """Return a condition in MLflow's search syntax, in which quotes cannot be escaped.

    Raises:
        CompareError: the name has both kinds of quotes.
    """
    for quote in ("'", '"'):
        if quote not in model:
            return f"tags.model {operator} {quote}{model}{quote}"
    raise CompareError(f"MLflow cannot search for {model!r}, with both kinds of quotes")


def _latest_of_each_model(query: Query, experiments: list[str] | None) -> list[Run]:
    if query.models:
        return [
            run
            for conditions in _by_model(query.models)
            for run in _search(query, experiments, conditions, NEWEST_FIRST, 1)
        ]
    return _latest_of_all_models(query, experiments)


def _latest_of_all_models(query: Query, experiments: list[str] | None) -> list[Run]:
    # The store cannot group: repeatedly ask for the newest run of a model not found yet.
    found: dict[str, Run] = {}
    others: list[str] = []
    limit = 1
    while newest := _search(query, experiments, others, NEWEST_FIRST, limit):
        run = next((run for run in newest if run.data.tags["model"] not in found), None)
        if run is not None:
            model = run.data.tags["model"]
            found[model] = run
            with suppress(CompareError):
                others.append(_model_is("!=", model))
        elif len(newest) < limit:
            break
        else:  # all are of models that no condition can leave out
            limit *= 2
    return list(found.values())


def _search(
    query: Query,
    experiments: list[str] | None,
    conditions: Sequence[str],
    order: list[str],
    limit: int,
) -> list[Run]:
    """Return the training runs that match `conditions` and the query's filter.

    Raises:
        CompareError: the filter is not valid.
    """
    with _invalid_filters():
        return mlflow.search_runs(
            experiment_ids=experiments,
            search_all_experiments=experiments is None,
            filter_string=_filter(query, conditions),
            max_results=limit,
            order_by=order,
            output_format="list",
        )


def _search_all(
    query: Query, experiments: list[str] | None, conditions: Sequence[str]
) -> list[Run]:
    """Return the training runs as `_search` does, newest first, with nothing but the columns.

    Raises:
        CompareError: the filter is not valid.
    """
    with _invalid_filters():
        return search.all_runs(COLUMNS, experiments, _filter(query, conditions))


def _filter(query: Query, conditions: Sequence[str]) -> str:
    return " and ".join(filter(None, ["tags.model LIKE '%'", *conditions, query.filter_string]))


@contextmanager
def _invalid_filters() -> Iterator[None]:
    """Turn MLflow's refusal of a filter into a CompareError."""
    try:
        yield
    except MlflowException as error:
        raise CompareError(str(error).splitlines()[0]) from error


def _table(found: Sequence[Run]) -> pd.DataFrame:
    metrics = pd.DataFrame([run.data.metrics for run in found], columns=list(METRICS), dtype=float)
    # MLflow's database stores infinity as the largest float.
    largest = sys.float_info.max
    metrics = metrics.replace({largest: math.inf, -largest: -math.inf})
    # Earlier versions logged what are tags now as parameters.
    settings = pd.DataFrame(
        [
            {name: run.data.tags.get(name) for name in ENVIRONMENT_TAGS}
            | run.data.params
            | {"model": run.data.tags[MODEL_TAG]}
            for run in found
        ],
        columns=["model", *PARAMS],
        dtype=object,
    ).fillna(NEWER)
    attributes = pd.DataFrame(
        [
            (run.info.run_name, run.info.run_id, run.info.status, run.info.start_time)
            for run in found
        ],
        columns=ATTRIBUTES,
    )
    attributes["start_time"] = pd.to_datetime(attributes["start_time"], unit="ms", utc=True)
    table = pd.concat([settings, metrics, attributes], axis="columns")[COLUMNS]
    # MLflow stores parameters as text: "0.10" typed at the command line is the number 0.1.
    # convert_dtypes keeps integers even if another run lacks the parameter.
    table[NUMBERS] = table[NUMBERS].apply(pd.to_numeric, errors="coerce").convert_dtypes()
    table[NAMES] = table[NAMES].astype("string")
    table[SWITCHES] = table[SWITCHES].apply(lambda values: values.str.lower())
    return table
