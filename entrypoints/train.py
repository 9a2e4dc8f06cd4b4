"""Train one model as an MLflow run: mlflow run . -e train -P model=cnn"""

import sys
from collections.abc import Sequence
from typing import Any

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.options import (
    check_resume,
    experiment_asked_for,
    resume_option,
    settings_typed,
    training_options,
    with_usual_val_size,
)
from fashion.analysis import drawing


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
    run_name: str,
    tags: Sequence[tuple[str, str]],
    allow_changes: bool,
    **_settings: Any,
) -> None:
    """Train MODEL on DATA and log the run to MLflow."""
    check_resume(context)
    asked = experiment_asked_for(context)
    if nproc == 1:
        drawing.start()
    from fashion.data.sources import load_for
    from fashion.tracking import (
        checkpoint,
        groups,
        overview,
        records,
        resumption,
        store,
        training,
        views,
    )
    from fashion.training import build, distributed

    if nproc > 1 and not distributed.is_launched():
        if not resume:  # what is resumed has been checked, and was not asked for here
            build.check_processes(nproc, asked)
            load_for(asked, data_dir)
        store.connect()
        context.exit(distributed.launch(nproc, "entrypoints.train", sys.argv[1:]))
    with distributed.joined():
        if distributed.rank():
            training.train_as_worker(data_dir)
            return
        store.connect()
        typed = settings_typed(context)
        resume = resume and resumption.unfinished(resume)
        if resume:
            asked = groups.asked_for(resume)
        dataset = load_for(asked, data_dir)
        if not resume:
            asked = with_usual_val_size(context, asked, dataset)
        distributed.share(asked.to_dict())
        if resume and not checkpoint.is_group(resume):
            if seeds > 1:
                raise click.UsageError(f"run {resume} is a single run: omit seeds.")
            run_id = training.resume(
                resume,
                dataset,
                typed,
                system_metrics=system_metrics,
                allow_changes=allow_changes,
            )
        elif seeds == 1 and not resume:
            run_id = training.train(
                asked, dataset, name=run_name, tags=dict(tags), system_metrics=system_metrics
            )
        else:
            group = (
                groups.load(resume, "train", typed, seeds)
                if resume
                else groups.plan("train", asked, seeds, asked.with_seeds(seeds))
            )
            name = run_name or f"{group.asked['model']}, {group.seeds} seeds"
            with groups.completed(
                group,
                name,
                dataset,
                resume,
                tags=dict(tags),
                system_metrics=system_metrics,
                allow_changes=allow_changes,
            ) as (run_id, children):
                spread = records.log_spread(children)
                overview.describe_seeds(spread)
            for metric, (mean, std) in spread.items():
                if metric.endswith("accuracy"):
                    click.echo(f"{metric}: {mean:.2%} ± {std:.2%} over {group.seeds} seeds")
        click.echo(f"Logged as run {run_id}\n\n{views.advice(run_id)}")


if __name__ == "__main__":
    program.run(train)
