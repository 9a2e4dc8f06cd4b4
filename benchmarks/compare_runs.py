"""What `compare` costs over many runs, against bare calls of mlflow.search_runs.

    uv run python -m benchmarks.compare_runs

Fills a new SQLite store with runs as a training run leaves them, without training, then times the
queries in turn. Prints medians, and ratios to the bare call that fetches as much.
"""

import logging
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import click
import mlflow
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag

from fashion import compare

ORDER = ["metrics.val_accuracy DESC"]


def fill(experiment_id: str, runs: int) -> None:
    """Log `runs` finished runs of three models, five seeds each of many learning rates."""
    client = MlflowClient()
    rng = random.Random(42)
    for number in range(runs):
        model = ("baseline", "nonlinear", "cnn")[number % 3]
        params = {
            "num_parameters": 7960,
            "epochs": 3,
            "batch_size": 32,
            "lr": 0.001 * (1 + number // 15),
            "hidden_units": 10,
            "val_size": 5000,
            "seed": number // 3 % 5,
        }
        now = int(time.time() * 1000)
        metrics = [Metric(name, rng.random(), now, 0) for name in compare.METRICS]
        run = client.create_run(experiment_id, start_time=now)
        client.log_batch(
            run.info.run_id,
            metrics=metrics,
            params=[Param(name, str(value)) for name, value in params.items()],
            tags=[RunTag("model", model)],
        )
        client.set_terminated(run.info.run_id)


def measure(queries: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Return the median seconds of each query, measured in turn after one warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in queries}
    for repetition in range(repetitions + 1):
        for name, query in queries.items():
            start = time.perf_counter()
            query()
            if repetition:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


@click.command()
@click.option("--runs", default=10_000, show_default=True)
@click.option("--repetitions", default=5, show_default=True)
def main(runs: int, repetitions: int) -> None:
    """Time `compare` over a store of RUNS runs."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        experiment_id = mlflow.set_experiment("benchmark").experiment_id
        start = time.perf_counter()
        fill(experiment_id, runs)
        click.echo(
            f"{runs:,} runs logged in {time.perf_counter() - start:.0f} s; mlflow"
            f" {mlflow.__version__}, Python {platform.python_version()}, {os.cpu_count()} cores;"
            f" medians of {repetitions}"
        )
        query = compare.Query()
        medians = measure(
            {
                "search_runs, 20 best": lambda: mlflow.search_runs(
                    order_by=ORDER, max_results=query.top
                ),
                "compare": lambda: compare.runs(query),
                "search_runs, all": lambda: mlflow.search_runs(
                    max_results=runs, output_format="list"
                ),
                "compare --group": lambda: compare.groups(query),
                "compare --latest-per-model": lambda: compare.runs(
                    compare.Query(latest_per_model=True)
                ),
            },
            repetitions,
        )
    bare = {
        "compare": "search_runs, 20 best",
        "compare --latest-per-model": "search_runs, 20 best",
        "compare --group": "search_runs, all",
    }
    click.echo("| query | seconds | ratio |\n| --- | ---: | ---: |")
    for name, seconds in medians.items():
        ratio = seconds / medians[bare[name]] if name in bare else 1
        click.echo(f"| {name} | {seconds:.3f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
