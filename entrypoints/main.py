"""Run the whole lab with one command: mlflow run ."""

import sys
from dataclasses import replace
from typing import Any

import click

from entrypoints.cli.command import Command
from entrypoints.cli.options import experiment_asked_for, training_options
from fashion.settings.task import MODEL_NAME

# Trained beside the requested model. Of the architecture's options they have hidden_units alone.
LINEAR_MODELS = ("baseline", "nonlinear")


@click.command(cls=Command)
@training_options
@click.pass_context
def main(
    context: click.Context,
    seeds: int,
    nproc: int,
    data_dir: str,
    system_metrics: bool,
    **settings: Any,
) -> None:
    """Train the lab's models as child runs, compare them and register the best MODEL.

    Trains baseline, nonlinear and MODEL with the same settings.
    """
    asked = experiment_asked_for(settings)
    from fashion.analysis import comparison
    from fashion.data.dataset import load_dataset
    from fashion.data.download import locate
    from fashion.settings.experiment import Architecture
    from fashion.tracking import query, records, registry, runs, store, training
    from fashion.training import build, distributed

    if nproc > 1 and not distributed.is_launched():
        build.check_processes(nproc, asked)
        locate(data_dir)
        store.connect()
        context.exit(distributed.launch(nproc, "entrypoints.main", sys.argv[1:]))
    linear = replace(asked, architecture=Architecture(asked.architecture.hidden_units))
    models = [
        *(replace(linear, model=name) for name in LINEAR_MODELS if name != asked.model),
        asked,
    ]
    with distributed.joined(build.resolve_device(asked.device)):
        dataset = load_dataset(data_dir)
        if distributed.rank():
            for _run in range(len(models) * seeds):
                training.train_as_worker(dataset)
            return
        store.connect()
        with runs.group("lab", system_metrics) as parent:
            for model in models:
                for seed in range(asked.recipe.seed, asked.recipe.seed + seeds):
                    click.echo(f"Training {model.model}" + (f", seed {seed}" * (seeds > 1)))
                    one = replace(model, recipe=replace(model.recipe, seed=seed))
                    training.train(one, dataset, nested=True)
            children = query.Query(
                filter_string=f"tags.mlflow.parentRunId = '{parent}'",
                metric="val_accuracy" if asked.val_size else "test_accuracy",
            )
            table = query.groups(children) if seeds > 1 else query.runs(children)
            records.log_comparison(table)
            click.echo(f"\n{comparison.render(table, 'table')}")
            if asked.val_size:
                candidates = query.Query(models=[asked.model])
                click.echo(registry.register(MODEL_NAME, candidates, dataset))
            else:
                click.echo("Nothing registered: val_size 0 leaves no validation data to select on.")


if __name__ == "__main__":
    main()
