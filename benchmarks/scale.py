"""Measure how query times grow with the number of runs: uv run python -m benchmarks.scale

Trains and registers one real run and copies its database rows with other ids, seeds and metrics,
every tenth with a version of the registered model. Then times `compare`, `register` and the
requests of the MLflow UI's pages in turn, in one warm process. Prints medians and growth, and plots
them.
"""

import json
import logging
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
from matplotlib.figure import Figure
from sqlalchemy import Connection, MetaData, Table, create_engine, func, select, text

from benchmarks.timing import interleave, machine, medians, table
from fashion.data.dataset import Dataset
from fashion.data.sources import load_dataset
from fashion.settings.experiment import Architecture, Experiment, Recipe
from fashion.tracking import query, registry, statistics, training

NAME = "scale"
# In an order that satisfies foreign keys.
RUN_TABLES = {
    "runs": "run_uuid",
    "params": "run_uuid",
    "tags": "run_uuid",
    "metrics": "run_uuid",
    "latest_metrics": "run_uuid",
    "logged_models": "source_run_id",
    "logged_model_params": "model_id",
    "logged_model_tags": "model_id",
    "logged_model_metrics": "run_id",
    "inputs": ("source_id", "destination_id"),
}
VERSION_TABLES = ("model_versions", "model_version_tags")
CHUNK = 500
# Operations that sort runs by a metric.
BY_METRIC = ("`compare`", "`register --dry-run`", "UI: runs, best first")


def train_one(dataset: Dataset) -> str:
    """Train and register the run to copy; return its id."""
    run_id = training.train(
        Experiment(
            "cnn", architecture=Architecture(), val_size=5000, device="cpu", recipe=Recipe(epochs=1)
        ),
        dataset,
    )
    registry.register(NAME, query.Query(models=["cnn"]), dataset)
    return run_id


class Copier:
    """Copies a run's rows, as MLflow would write them, in seconds instead of hours."""

    def __init__(self, database: str, run_id: str) -> None:
        self.engine = create_engine(database)
        self.tables = MetaData()
        self.tables.reflect(self.engine)
        self.run_id = run_id
        self.random = random.Random(0)
        with self.engine.connect() as connection:
            self.rows = {name: self._rows(connection, name) for name in RUN_TABLES}
            self.rows |= {name: self._all(connection, name) for name in VERSION_TABLES}
            ids = [row["input_uuid"] for row in self.rows["inputs"]]
            tags = self.tables.tables["input_tags"]
            self.rows["input_tags"] = self._query(
                connection, select(tags).where(tags.c.input_uuid.in_(ids))
            )
        self.model_id = self.rows["logged_models"][0]["model_id"]

    def _query(self, connection: Connection, query: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in connection.execute(query).mappings()]

    def _all(self, connection: Connection, name: str) -> list[dict[str, Any]]:
        return self._query(connection, select(self.tables.tables[name]))

    def _rows(self, connection: Connection, name: str) -> list[dict[str, Any]]:
        rows, key = self._all(connection, name), RUN_TABLES[name]
        keys = key if isinstance(key, tuple) else (key,)
        model_ids = {row["model_id"] for row in self._all(connection, "logged_models")}
        return [row for row in rows if any(row[k] in (self.run_id, *model_ids) for k in keys)]

    def grow(self, runs: int) -> None:
        """Copy until the store has this number of runs, and a tenth as many versions."""
        with self.engine.begin() as connection:
            existing = connection.scalar(select(func.count()).select_from(self._table("runs")))
            for start in range(existing, runs, CHUNK):
                numbers = range(start, min(start + CHUNK, runs))
                copies = [self._copy(number) for number in numbers]
                for name in (*RUN_TABLES, "input_tags", *VERSION_TABLES):
                    rows = [row for copy in copies for row in copy.get(name, [])]
                    if rows:
                        connection.execute(self._table(name).insert(), rows)

    def drop_statistics(self) -> None:
        """Leave the store as MLflow does, which never collects statistics."""
        with self.engine.begin() as connection:
            connection.execute(text("DROP TABLE IF EXISTS sqlite_stat1"))

    def analyze(self) -> None:
        """Collect statistics by hand, of all rows."""
        self.drop_statistics()
        with self.engine.begin() as connection:
            connection.execute(text("ANALYZE"))

    def _table(self, name: str) -> Table:
        return self.tables.tables[name]

    def _copy(self, number: int) -> dict[str, list[dict[str, Any]]]:
        """Return the rows of a copy, with worse metrics than the original."""
        run_id, model_id = uuid.uuid4().hex, f"m-{uuid.uuid4().hex}"
        inputs = {row["input_uuid"]: uuid.uuid4().hex for row in self.rows["inputs"]}
        ids = {self.run_id: run_id, self.model_id: model_id, **inputs}
        worse = self.random.uniform(0.01, 0.3)
        copy: dict[str, list[dict[str, Any]]] = {}
        for name in (*RUN_TABLES, "input_tags"):
            copy[name] = []
            for row in self.rows[name]:
                other = {key: ids.get(value, value) for key, value in row.items()}
                for key in ("value", "metric_value"):
                    if isinstance(other.get(key), float):
                        other[key] *= 1 - worse
                if other.get("key") == "seed":
                    other["value"] = str(number)
                if name == "runs":
                    other["start_time"] -= 1000 * number
                copy[name].append(other)
        if number % 10 == 0:
            version = 1 + number // 10
            copy["model_versions"] = [
                {**row, "version": version, "source": f"models:/{model_id}", "run_id": run_id}
                for row in self.rows["model_versions"]
            ]
            copy["model_version_tags"] = [
                {**row, "version": version, "value": ids.get(row["value"], row["value"])}
                for row in self.rows["model_version_tags"]
            ]
        return copy


@contextmanager
def server(database: str, folder: Path) -> Iterator[str]:
    """Run `mlflow server` on the store; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["server", "--port", str(port), "--workers", "1", "--backend-store-uri", database]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *command, "--default-artifact-root", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        while True:
            with suppress(OSError), urllib.request.urlopen(f"{address}/health"):
                break
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def request(address: str, path: str, content: dict[str, Any] | None = None) -> None:
    body = None if content is None else json.dumps(content).encode()
    asked = urllib.request.Request(
        f"{address}/ajax-api/2.0/mlflow/{path}", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as response:
        response.read()


def operations(
    address: str, experiment_id: str, dataset: Dataset
) -> dict[str, Callable[[], object]]:
    """Return the operations to time."""
    page = {"experiment_ids": [experiment_id], "max_results": 100}
    cnns = query.Query(models=["cnn"])
    return {
        "`compare`": lambda: query.runs(query.Query()),
        "`compare --latest-per-model`": lambda: query.runs(query.Query(latest_per_model=True)),
        "`compare --group`": lambda: query.groups(query.Query()),
        "`register --dry-run`": lambda: registry.register(NAME, cnns, dataset, dry_run=True),
        "UI: runs, newest first": lambda: request(
            address, "runs/search", {**page, "order_by": ["attributes.start_time DESC"]}
        ),
        "UI: runs, best first": lambda: request(
            address, "runs/search", {**page, "order_by": ["metrics.`val_accuracy` DESC"]}
        ),
        "UI: models of the experiment": lambda: request(
            address, "logged-models/search", {**page, "max_results": 50}
        ),
        "UI: versions of the model": lambda: request(
            address, f"model-versions/search?filter=name%3D%27{NAME}%27&max_results=25"
        ),
    }


def draw(sizes: Sequence[int], found: dict[str, list[float]]) -> Figure:
    """Plot seconds against runs, both on logarithmic scales."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    for (name, seconds), marker in zip(found.items(), "os^Dv<>PX*phd8", strict=True):
        axes.loglog(sizes, seconds, f"{marker}-", label=name.replace("`", ""))
    axes.loglog(sizes, 0.0005 * np.array(sizes) / 10, "--", color="gray", label="linear growth")
    axes.set(xlabel="runs in the store", ylabel="seconds (median)", xticks=sizes)
    axes.set_xticklabels([f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


@click.command()
@click.option("--sizes", default="1000,3000,10000", show_default=True)
@click.option("--repetitions", default=3, show_default=True)
@click.option("--figure", default="scale.png", show_default=True)
def main(sizes: str, repetitions: int, figure: str) -> None:
    """Time common operations in stores with SIZES runs."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    dataset, counts = load_dataset(), [int(size) for size in sizes.split(",")]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FASHION_STATE_DIR"] = folder
        database = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(database)
        experiment_id = mlflow.create_experiment(NAME, Path(folder, "artifacts").as_uri())
        mlflow.set_experiment(NAME)
        copier = Copier(database, train_one(dataset))
        for count in counts:
            copier.grow(count)
            with server(database, Path(folder)) as address:
                timed = operations(address, experiment_id, dataset)
                path = Path(folder, "mlflow.db")
                copier.drop_statistics()
                statistics.refresh(path)
                measured = interleave(timed, repetitions)
                for how, collect in (
                    ("after ANALYZE", copier.analyze),
                    ("without statistics", copier.drop_statistics),
                ):
                    collect()
                    ordered = {f"{name}, {how}": timed[name] for name in BY_METRIC}
                    measured |= interleave(ordered, repetitions)
            for name, seconds in medians(measured).items():
                found.setdefault(name, []).append(seconds)
            size = path.stat().st_size
            click.echo(f"{count:,} runs: {size / 2**20:,.0f} MiB", err=True)
    draw(counts, found).savefig(figure)
    header = ["seconds", *(f"{count:,} runs" for count in counts), "growth"]
    rows = [
        [name, *(f"{value:.3f}" for value in seconds), f"{seconds[-1] / seconds[0]:.1f}"]
        for name, seconds in found.items()
    ]
    click.echo(", ".join(f"{name} {value}" for name, value in machine().items()))
    click.echo(f"medians of {repetitions}\n\n{table(header, rows)}")


if __name__ == "__main__":
    main()
