"""Train one model as an MLflow run: mlflow run . -e train -P model=cnn

MLflow logs whatever `MLproject` gives a default, and for good. What a preset decides has its
default here alone; `mlflow run -P hidden_units=32` hands it on as --hidden_units 32.
"""

from dataclasses import replace
from typing import Any

import click

from entrypoints.options import (
    Command,
    ModelName,
    Weights,
    configuration,
    switch,
    training_options,
)
from fashion.presets import PRESETS


def apply_preset(context: click.Context, _: click.Parameter, preset: str) -> str:
    """Make the settings of the preset the defaults of the options."""
    context.default_map = PRESETS[preset]
    return preset


@click.command(
    cls=Command,
    context_settings={"token_normalize_func": lambda name: name.replace("_", "-")},
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    default="lab",
    show_default=True,
    is_eager=True,
    callback=apply_preset,
    help="Settings that go together; any other option overrides its preset's. The defaults shown"
    " are the lab's.",
)
@click.option(
    "--model",
    type=ModelName(),
    default="cnn",
    show_default=True,
    help="A model of fashion/models.py: baseline, nonlinear, nonlinear-fixed, cnn, compact,"
    " resnet; or a classifier of torchvision, such as torchvision:resnet18.",
)
@click.option(
    "--pretrained",
    type=Weights(),
    default="",
    help="Weights that a torchvision model starts from: a file, or default to download its best.",
)
@click.option(
    "--freeze-epochs",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="First epochs, in which the last layer alone learns.",
)
@switch("--tta", help="Log accuracies of test-time augmentation, by mirror images, too.")
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Train so often, with seeds from --seed upwards, each a child of one run.",
)
@training_options
def train(
    preset: str,
    model: str,
    tta: bool,
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
            model, architecture, val_size, device, replace(recipe, seed=seed), preset, tta
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
