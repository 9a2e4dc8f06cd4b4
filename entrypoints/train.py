"""Train one model as an MLflow run: mlflow run . -e train -P model=cnn"""

from dataclasses import replace
from typing import Any

import click

from entrypoints.options import Command, ModelName, configuration, training_options


@click.command(cls=Command)
@click.option(
    "--model",
    type=ModelName(),
    default="cnn",
    show_default=True,
    help="A model of fashion/models.py: baseline, nonlinear, nonlinear-fixed, cnn, resnet.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Train so often, with seeds from --seed upwards, each a child of one run.",
)
@training_options
def train(
    model: str,
    seeds: int,
    val_size: int,
    device: str,
    data_dir: str,
    system_metrics: bool,
    **settings: Any,
) -> None:
    """Train MODEL on Fashion-MNIST and log the run to MLflow."""
    from fashion import data, tracking

    architecture, recipe = configuration([model], val_size, settings)
    dataset = data.load(data_dir)
    tracking.connect()

    def train_one(seed: int, **options: bool) -> str:
        experiment = tracking.Experiment(
            model, architecture, val_size, device, replace(recipe, seed=seed)
        )
        return tracking.train(experiment, dataset, **options)

    if seeds == 1:
        run_id = train_one(recipe.seed, system_metrics=system_metrics)
    else:
        with tracking.group(f"{model}, {seeds} seeds", system_metrics) as run_id:
            runs = []
            for seed in range(recipe.seed, recipe.seed + seeds):
                click.echo(f"Seed {seed}")
                runs.append(train_one(seed, nested=True))
            for metric, (mean, std) in tracking.log_spread(runs).items():
                if metric.endswith("accuracy"):
                    click.echo(f"{metric}: {mean:.2%} ± {std:.2%} over {seeds} seeds")
    click.echo(f"Logged as run {run_id}")


if __name__ == "__main__":
    train()
