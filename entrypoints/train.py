"""Train one model as an MLflow run: mlflow run . -e train -P model=cnn

MLflow logs whatever `MLproject` gives a default, and for good. What a preset decides has its
default here alone; `mlflow run -P hidden_units=32` hands it on as --hidden_units 32.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from entrypoints.options import (
    Command,
    ModelName,
    RunToResume,
    Weights,
    configuration,
    switch,
    training_options,
)
from fashion.settings.presets import PRESETS

if TYPE_CHECKING:
    from fashion.data.dataset import FashionMNIST
    from fashion.settings.experiment import Experiment, Recipe

# What MLproject hands on in every run, so that its default may not be what was asked for.
DECLARED = ("preset", "seed", "val_size", "device", "kernels")
# What is no setting of the run.
OF_THE_COMMAND = ("seeds", "nproc", "resume", "data_dir", "system_metrics")


def apply_preset(context: click.Context, _: click.Parameter, preset: str) -> str:
    """Make the settings of the preset the defaults of the options."""
    context.default_map = PRESETS[preset]
    return preset


def given(context: click.Context) -> dict[str, Any]:
    """Return the settings of the run that were typed, by name."""
    values = {}
    for option in context.command.params:
        name = option.name
        typed = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        default = context.params[name] == option.get_default(context)
        if typed and name not in OF_THE_COMMAND and not (name in DECLARED and default):
            values[name] = context.params[name]
    return values


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
    help="A model of fashion/models: baseline, nonlinear, nonlinear-fixed, cnn, compact,"
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
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Processes of this machine that share each batch (data-parallel training), each on its own"
    " GPU or on its part of the cores.",
)
@click.option(
    "--resume",
    type=RunToResume(),
    default="",
    metavar="RUN",
    help="Go on with this run that was stopped, latest for the last one on this machine. Its"
    " settings are taken from it; those given here must be the same.",
)
@training_options
@click.pass_context
def train(
    context: click.Context,
    seeds: int,
    nproc: int,
    resume: str,
    data_dir: str,
    system_metrics: bool,
    **_: Any,
) -> None:
    """Train MODEL on Fashion-MNIST and log the run to MLflow."""
    from fashion.data.dataset import load_dataset
    from fashion.data.download import locate
    from fashion.tracking import store, training
    from fashion.training import build, distributed

    if resume and seeds > 1:
        raise click.UsageError("resume goes on with one run: leave seeds out.")
    asked = _experiment(context.params)
    device = build.resolve_device(asked.device)
    if nproc > 1 and not distributed.is_launched():
        _check_processes(nproc, asked.recipe, device.type)
        locate(data_dir)
        store.connect()
        context.exit(distributed.launch(nproc, "entrypoints.train", sys.argv[1:]))
    with distributed.joined(device):
        dataset = load_dataset(data_dir)
        if distributed.rank():
            for _seed in range(seeds):
                training.follow(dataset)
            return
        store.connect()
        if resume:
            run_id = training.resume(resume, dataset, given(context), system_metrics=system_metrics)
            click.echo(f"Logged as run {run_id}")
            return
        run_id = _train_all(asked, seeds, dataset, system_metrics)
        click.echo(f"Logged as run {run_id}")


def _train_all(
    asked: "Experiment", seeds: int, dataset: "FashionMNIST", system_metrics: bool
) -> str:
    """Train with each seed; return the id of the run, or of the parent of several."""
    from fashion.tracking import records, runs, training

    if seeds == 1:
        return training.train(asked, dataset, system_metrics=system_metrics)
    with runs.group(f"{asked.model}, {seeds} seeds", system_metrics) as parent:
        children = []
        for seed in range(asked.recipe.seed, asked.recipe.seed + seeds):
            click.echo(f"Seed {seed}")
            one = replace(asked, recipe=replace(asked.recipe, seed=seed))
            children.append(training.train(one, dataset, nested=True))
        for metric, (mean, std) in records.log_spread(children).items():
            if metric.endswith("accuracy"):
                click.echo(f"{metric}: {mean:.2%} ± {std:.2%} over {seeds} seeds")
    return parent


def _check_processes(nproc: int, recipe: "Recipe", device: str) -> None:
    """Refuse what processes cannot share, before there are any."""
    import torch

    if recipe.batch_size < nproc:
        raise click.UsageError(f"{nproc} processes cannot share batches of {recipe.batch_size}.")
    if recipe.kernels == "native":
        raise click.UsageError("the native kernels train in one process: leave nproc out.")
    if device == "cuda" and torch.cuda.device_count() < nproc:
        raise click.UsageError(
            f"{nproc} processes need as many GPUs: this machine has {torch.cuda.device_count()}."
        )


def experiment(options: Mapping[str, Any]) -> "Experiment":
    """Return what `train` would train if it were given these options, by name.

    Raises:
        click.UsageError: it would refuse them.
    """
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return _experiment(train.make_context("train", arguments).params)


def _experiment(params: Mapping[str, Any]) -> "Experiment":
    from fashion.settings.experiment import Experiment

    model, val_size = params["model"], params["val_size"]
    architecture, recipe = configuration([model], val_size, dict(params))
    return Experiment(
        model, architecture, val_size, params["device"], recipe, params["preset"], params["tta"]
    )


if __name__ == "__main__":
    train()
