"""The whole lab, one command: mlflow run ."""

from typing import Any

import click

from entrypoints.options import Command, configuration, training_options


@click.command(cls=Command)
@training_options
def main(
    val_size: int,
    device: str,
    data_dir: str,
    system_metrics: bool,
    **settings: Any,
) -> None:
    """Train the lab's three models as child runs of one, compare them, register the best CNN."""
    from fashion.analysis import comparison
    from fashion.data.dataset import load_dataset
    from fashion.settings.experiment import Architecture, Experiment
    from fashion.tracking import query, records, registry, runs, store, training

    architecture, recipe = configuration(["cnn"], val_size, settings)
    # The linear models have a hidden layer and nothing else to choose.
    linear = Architecture(architecture.hidden_units)
    dataset = load_dataset(data_dir)
    store.connect()
    with runs.group("lab", system_metrics) as parent:
        for model in ("baseline", "nonlinear", "cnn"):
            click.echo(f"Training {model}")
            network = architecture if model == "cnn" else linear
            experiment = Experiment(model, network, val_size, device, recipe)
            training.train(experiment, dataset, nested=True)
        children = query.Query(
            filter_string=f"tags.mlflow.parentRunId = '{parent}'",
            metric="val_accuracy" if val_size else "test_accuracy",
        )
        table = query.runs(children)
        records.log_comparison(table)
        click.echo(f"\n{comparison.render(table, 'table')}")
        if val_size:
            cnns = query.Query(models=["cnn"])
            click.echo(registry.register(registry.MODEL_NAME, cnns, dataset))
        else:
            click.echo("Nothing registered: val_size 0 leaves no validation data to select on.")


if __name__ == "__main__":
    main()
