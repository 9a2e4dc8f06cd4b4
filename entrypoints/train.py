"""Train one model as an MLflow run: mlflow run . -e train -P model=cnn"""

import sys
from dataclasses import replace
from typing import Any

import click

from entrypoints.cli.command import Command
from entrypoints.cli.options import (
    experiment_asked_for,
    resume_option,
    settings_typed,
    training_options,
)


@click.command(cls=Command)
@training_options
@resume_option(
    "Id of an interrupted run to continue, or latest for the last one on this machine. Its settings"
    " are restored; options given here must match them."
)
@click.pass_context
def train(
    context: click.Context,
    seeds: int,
    nproc: int,
    resume: str,
    data_dir: str,
    system_metrics: bool,
    **settings: Any,
) -> None:
    """Train MODEL on Fashion-MNIST and log the run to MLflow."""
    if resume and seeds > 1:
        raise click.UsageError("resume continues a single run: omit seeds.")
    asked = experiment_asked_for(settings)
    from fashion.data.dataset import load_dataset
    from fashion.data.download import locate
    from fashion.tracking import store, training
    from fashion.training import build, distributed

    if nproc > 1 and not distributed.is_launched():
        build.check_processes(nproc, asked)
        locate(data_dir)
        store.connect()
        context.exit(distributed.launch(nproc, "entrypoints.train", sys.argv[1:]))
    with distributed.joined(build.resolve_device(asked.device)):
        dataset = load_dataset(data_dir)
        if distributed.rank():
            for _seed in range(seeds):
                training.train_as_worker(dataset)
            return
        store.connect()
        if resume:
            typed = settings_typed(context)
            run_id = training.resume(resume, dataset, typed, system_metrics=system_metrics)
        elif seeds == 1:
            run_id = training.train(asked, dataset, system_metrics=system_metrics)
        else:
            first = asked.recipe.seed
            repetitions = [
                replace(asked, recipe=replace(asked.recipe, seed=seed))
                for seed in range(first, first + seeds)
            ]
            run_id, spread = training.train_seeds(repetitions, dataset, system_metrics)
            for metric, (mean, std) in spread.items():
                if metric.endswith("accuracy"):
                    click.echo(f"{metric}: {mean:.2%} ± {std:.2%} over {seeds} seeds")
        click.echo(f"Logged as run {run_id}")


if __name__ == "__main__":
    train()
