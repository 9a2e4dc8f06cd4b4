"""SQLite's statistics of a store follow its growth, and nobody waits for them."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path
from unittest import mock

import mlflow
import pytest

from fashion.tracking import statistics
from fashion.tracking.store import connect
from tests.conftest import ROOT


def add_runs(number: int) -> None:
    for _ in range(number):
        with mlflow.start_run():
            mlflow.log_param("seed", 1)


def runs_known(folder: Path) -> int | None:
    """Return how many runs SQLite's statistics know of, None without statistics."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        try:
            row = database.execute("SELECT stat FROM sqlite_stat1 WHERE tbl = 'runs'").fetchone()
        except sqlite3.OperationalError:
            return None
    return row and int(row[0].split()[0])


def test_statistics_follow_when_the_store_has_grown_by_half(store: Path) -> None:
    connect()
    assert runs_known(store) is None
    add_runs(4)
    connect()
    assert runs_known(store) == 4
    add_runs(2)
    connect()
    assert runs_known(store) == 4
    add_runs(1)
    connect()
    assert runs_known(store) == 7


def test_runs_are_counted_although_the_rest_is_sampled(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "SAMPLED_ROWS", 1)
    with closing(sqlite3.connect(store / "mlflow.db")) as database, database:
        database.executemany(
            "INSERT INTO runs (run_uuid, experiment_id) VALUES (?, 0)",
            [(f"{number * 7919 % 3000:032x}",) for number in range(3000)],
        )
        database.executemany(
            "INSERT INTO params VALUES ('seed', '1', ?)",
            [(f"{number:032x}",) for number in range(3000)],
        )
    statistics.refresh(store / "mlflow.db")
    assert runs_known(store) == 3000
    with closing(sqlite3.connect(store / "mlflow.db")) as database:
        (stat,) = database.execute(
            "SELECT stat FROM sqlite_stat1 WHERE idx = 'sqlite_autoindex_params_1'"
        ).fetchone()
    # All 3,000 have the same key: the sample ended before it knew.
    assert int(stat.split()[1]) < 3000


def test_what_a_command_added_is_known_when_it_ends(store: Path) -> None:
    # Not forked, as other tests' processes are: those do not end as a command's does.
    command = [sys.executable, "-m", "entrypoints.compare", "--log"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert runs_known(store) == 1


def test_a_writer_is_not_waited_for(store: Path) -> None:
    add_runs(1)
    patience = []

    class Connection(sqlite3.Connection):
        def close(self) -> None:
            patience.append(self.execute("PRAGMA busy_timeout").fetchone())
            super().close()

    with closing(sqlite3.connect(store / "mlflow.db", isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        with mock.patch.object(sqlite3, "connect", partial(sqlite3.connect, factory=Connection)):
            statistics.refresh(store / "mlflow.db")
        writer.execute("ROLLBACK")
    assert patience == [(0,)]
    assert runs_known(store) is None
    connect()
    assert runs_known(store) == 1


def test_a_connection_that_was_open_learns_of_new_statistics(store: Path) -> None:
    add_runs(1)
    connect()
    with closing(sqlite3.connect(store / "mlflow.db")) as opened:
        query = "SELECT count(*) FROM sqlite_master"
        opened.execute(query).fetchone()
        (before,) = opened.execute("PRAGMA schema_version").fetchone()
        add_runs(1)
        connect()
        # SQLite reads statistics together with the schema, when that has changed.
        assert opened.execute("PRAGMA schema_version").fetchone() != (before,)


def test_no_database_is_made_and_no_other_file_touched(tmp_path: Path) -> None:
    statistics.refresh(tmp_path / "none.db")
    assert not list(tmp_path.iterdir())
    (tmp_path / "text").write_text("no database " * 1000)
    statistics.refresh(tmp_path / "text")
    assert (tmp_path / "text").read_text() == "no database " * 1000
    statistics.refresh(tmp_path)


def test_another_store_than_sqlite_is_left_alone(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "refresh", lambda _: pytest.fail("statistics were refreshed"))
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://127.0.0.1:1")
    monkeypatch.setattr(mlflow, "search_experiments", lambda **_: [])
    connect()
