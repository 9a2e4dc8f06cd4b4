"""Check a record of speedrun.md: uv run python -m benchmarks.speedrun --record cpu-93

Trains with each seed in turn, logs the runs to MLflow's experiment `speedrun`, prints the record's
row, and fails if the mean accuracy is below the record's.
"""

import statistics

import click
import mlflow
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

from benchmarks.contenders import clocked_accuracy
from benchmarks.timing import machine, table
from fashion.data.dataset import Dataset
from fashion.data.sources import load_dataset
from fashion.errors import DeviceError
from fashion.settings.experiment import Experiment
from fashion.tracking import models, store, training
from fashion.training.build import resolve_device

# What `train` is asked for. A name is the device, and the least mean test accuracy in %.
RECORDS: dict[str, dict[str, str | float | bool]] = {
    "cpu-93": {"preset": "fast"},
    "cpu-94": {
        "preset": "fast",
        "hidden_units": 32,
        "epochs": 12,
        "lr": 0.02,
        "augment": "alternate,shift",
    },
    "gpu-94": {"preset": "fast-gpu"},
}
DEVICES = {"cpu": "cpu", "gpu": "cuda"}


@click.command()
@click.option("--record", type=click.Choice(list(RECORDS)), required=True)
@click.option("--seeds", type=click.IntRange(min=5), default=5, show_default=True)
@click.option("--first-seed", default=42, show_default=True)
def main(record: str, seeds: int, first_seed: int) -> None:
    """Repeat the trainings of a record, and say whether it stands."""
    device, level = record.split("-")
    settings = {**RECORDS[record], "device": DEVICES[device]}
    try:
        resolve_device(DEVICES[device])
    except DeviceError as error:
        raise click.ClickException(str(error)) from error
    store.connect()
    mlflow.set_experiment("speedrun")
    dataset = load_dataset()
    click.echo(", ".join(f"{name} {value}" for name, value in machine().items()))
    seconds, accuracies = [], []
    for seed in range(first_seed, first_seed + seeds):
        asked = Experiment.from_options({**settings, "seed": seed})
        run = mlflow.get_run(training.train(asked, dataset))
        clocked, accuracy = result(run, asked, dataset)
        seconds.append(clocked)
        accuracies.append(100 * accuracy)
        click.echo(f"seed {seed}: {clocked:.1f} s, {accuracy:.2%}, run {run.info.run_id}")
    mean = statistics.mean(accuracies)
    row = [
        record,
        f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})",
        f"{mean:.2f} ± {statistics.stdev(accuracies):.2f}",
        ", ".join(f"{each:.2f}" for each in accuracies),
        run.data.tags.get(MLFLOW_GIT_COMMIT, "")[:8],
    ]
    click.echo(table(["record", "seconds", "test accuracy %", "per seed", "commit"], [row]))
    if mean < float(level):
        raise click.ClickException(f"the mean is below {level} %")


def result(run: Run, asked: Experiment, dataset: Dataset) -> tuple[float, float]:
    """Return the seconds that count, and the logged model's test accuracy."""
    model = models.load(models.model_uri(run)).to(resolve_device(asked.device))
    accuracy, evaluated = clocked_accuracy(model, dataset.test, tta=asked.tta)
    return run.data.metrics["train_seconds"] + evaluated, accuracy


if __name__ == "__main__":
    main()
