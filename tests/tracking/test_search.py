"""Reading only the columns gives the same table as MLflow's own search."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from fashion.settings.comparison import Query
from fashion.settings.metrics import METRICS
from fashion.tracking import query, search

VALUES = (math.nan, math.inf, -math.inf, 0.1 + 0.2, 1e-300, -0.0, 0.9123456789012345)


@contextmanager
def whole_runs(keys: object) -> Iterator[list[Run]]:
    yield []


@pytest.fixture
def random_runs(store: Path) -> None:
    """Runs of which each lacks something, has text that needs escapes, and any number."""
    random_ = random.Random(0)
    client = MlflowClient()
    ids = [client.create_experiment("other"), mlflow.get_experiment_by_name("test").experiment_id]
    for number in range(24):
        run_id = client.create_run(
            random_.choice(ids), start_time=number // 2, run_name=f"é{number}"
        ).info.run_id
        params, tags = (
            [],
            [RunTag("model", random_.choice(["cnn", 'it\'s "x"\\'])), RunTag("x", "")],
        )
        for name in random_.sample(query.PARAMS, 25):
            value = random_.choice(["1", "0.10", "True", "ü\t\"'\\", "😀", ""])
            if random_.random() < 0.8:
                params.append(Param(name, value))
            else:
                tags.append(RunTag(name, value))
        measured = [
            Metric(name, random_.choice(VALUES), 0, 0) for name in random_.sample(list(METRICS), 4)
        ]
        client.log_batch(run_id, measured, params, tags)
        if number % 5:
            client.set_terminated(run_id, "FINISHED")
        if number % 7 == 0:
            client.delete_run(run_id)


def test_groups_are_those_of_whole_runs(random_runs: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [
        Query(experiments, filter_string, top=100)
        for experiments in ([], ["all"], ["other"])
        for filter_string in ("", "params.seed != '1'", "metrics.val_accuracy < 2")
    ]
    read = [query.groups(each) for each in asked]
    monkeypatch.setattr(search, "_reading_only", whole_runs)
    for each, groups in zip(asked, read, strict=True):
        pd.testing.assert_frame_equal(groups, query.groups(each))


def test_only_what_is_asked_for_is_read_newest_first(random_runs: None) -> None:
    keys = ["model", "seed", "val_accuracy"]
    read = search.all_runs(keys, None, "")
    whole = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert [run.info.run_id for run in read] == [run.info.run_id for run in whole]
    for few, all_ in zip(read, whole, strict=True):
        assert few.info.run_name == all_.info.run_name
        assert few.info.status == all_.info.status
        for kind in ("params", "tags", "metrics"):
            values = getattr(all_.data, kind)
            expected = {key: values[key] for key in keys if key in values}
            assert repr(getattr(few.data, kind)) == repr(
                {key: expected[key] for key in getattr(few.data, kind)}
            )
            assert len(getattr(few.data, kind)) == len(expected)


def test_nothing_of_the_search_stays_behind(random_runs: None) -> None:
    search.all_runs(["model"], None, "")
    assert mlflow.search_runs(search_all_experiments=True, output_format="list")[0].data.params
