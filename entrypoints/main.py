"""Run the whole lab with one command: mlflow run ."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.options import (
    check_resume,
    declared_options,
    experiment_asked_for,
    resume_option,
    settings_typed,
    training_options,
    with_usual_val_size,
)
from fashion.analysis import drawing
from fashion.errors import FashionError, printable
from fashion.settings.gate import GATE_OPTIONS, Gate
from fashion.settings.task import FASHION_MNIST

# Trained beside the requested model. Of the architecture's options they have hidden_units alone.
LINEAR_MODELS = ("baseline", "nonlinear")


@click.command(cls=Command)
@training_options
@declared_options(list(GATE_OPTIONS.values()))
@resume_option(
    "Id of an interrupted run of main to continue, or latest for the last one on this machine. Its"
    " settings are restored; options given here must match them."
)
@click.pass_context
def main(
    context: click.Context,
    seeds: int,
    nproc: int,
    resume: str,
    data_dir: str,
    system_metrics: bool,
    run_name: str,
    tags: Sequence[tuple[str, str]],
    allow_changes: bool,
    min_p: float,
    min_gain: float,
    force: bool,
    **_settings: Any,
) -> None:
    """Train the lab's models as child runs, compare them and register the best MODEL.

    Trains baseline, nonlinear and MODEL with the same settings.
    """
    check_resume(context)
    asked = experiment_asked_for(context)
    if nproc == 1:
        drawing.start()
    from fashion import advice
    from fashion.analysis import comparison
    from fashion.data.sources import load_for
    from fashion.settings.experiment import Architecture
    from fashion.tracking import (
        checkpoint,
        groups,
        overview,
        query,
        records,
        registry,
        resumption,
        store,
        training,
        views,
    )
    from fashion.tracking.checkpoint import CheckpointError
    from fashion.training import build, distributed

    if nproc > 1 and not distributed.is_launched():
        if not resume:  # what is resumed has been checked, and was not asked for here
            build.check_processes(nproc, asked)
            load_for(asked, data_dir)
        store.connect()
        context.exit(distributed.launch(nproc, "entrypoints.main", sys.argv[1:]))
    with distributed.joined():
        if distributed.rank():
            training.train_as_worker(data_dir)
            return
        store.connect()
        if resume:
            resume = resumption.unfinished(resume)
            if not checkpoint.is_group(resume):
                raise CheckpointError(
                    f"run {resume} was started by train: continue with"
                    f" {advice.command('train', resume=resume)}"
                )
            group = groups.load(resume, "main", settings_typed(context), seeds)
            asked, seeds = resumption.experiment_of(group.asked), group.seeds
        dataset = load_for(asked, data_dir)
        if not resume:
            asked = with_usual_val_size(context, asked, dataset)
            linear = replace(asked, architecture=Architecture(asked.architecture.hidden_units))
            models = [
                *(replace(linear, model=name) for name in LINEAR_MODELS if name != asked.model),
                asked,
            ]
            experiments = [each for model in models for each in model.with_seeds(seeds)]
            group = groups.plan("main", asked, seeds, experiments)
        distributed.share(asked.to_dict())
        # Commands that messages show need no name of the usual data.
        named = {} if asked.data == FASHION_MNIST.name else {"data": asked.data}
        with groups.completed(
            group,
            run_name or "lab",
            dataset,
            resume,
            tags=dict(tags),
            system_metrics=system_metrics,
            allow_changes=allow_changes,
        ) as (parent, _):
            children = query.Query(
                filter_string=f"tags.mlflow.parentRunId = '{parent}'",
                metric="val_accuracy" if asked.val_size else "test_accuracy",
            )
            table = query.groups(children) if seeds > 1 else query.runs(children)
            records.log_comparison(table)
            click.echo(f"\n{comparison.render(table, 'table')}")
            registered = False
            if asked.val_size:
                candidates = query.Query(models=[asked.model])
                gate = Gate(min_p, min_gain, force)
                name = dataset.task.model_name
                try:
                    registration = str(registry.register(name, candidates, dataset, gate=gate))
                    registered = True
                except FashionError as error:  # what was trained and compared stays valid
                    registration = f"Nothing registered: {printable(str(error))}."
            else:
                registration = (
                    "Nothing registered: val_size 0 leaves no validation data to select on."
                )
            click.echo(registration)
            overview.describe_comparison(
                table,
                dataset,
                named,
                asked.val_size,
                registration,
                registered=registered,
            )
        click.echo(f"\n{views.advice(parent)}")
        if registered:
            click.echo(
                f"\nUse the champion:\n  {advice.command('predict', **named, indices='0-8')}"
            )


if __name__ == "__main__":
    program.run(main)
