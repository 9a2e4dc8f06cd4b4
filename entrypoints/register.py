"""Register the best model and name the champion: mlflow run . -e register"""

import click

from entrypoints.cli.command import Command
from entrypoints.cli.options import data_dir_option, experiment_option, settings_options, switch
from fashion.models.catalogue import constructor
from fashion.settings.metrics import SELECTING_METRICS


@click.command(cls=Command)
@experiment_option
@settings_options("model")
@click.option(
    "--name",
    default="fashion-mnist-cnn",
    show_default=True,
    help="The registered model.",
)
@click.option(
    "--metric",
    type=click.Choice(SELECTING_METRICS),
    default="val_accuracy",
    show_default=True,
    help="What the best run and the champion are chosen by.",
)
@switch("--select-on-test", help="Allow a test metric to choose; its value is then optimistic.")
@switch("--dry-run", help="Say what would be done, and do nothing.")
@switch("--rollback", help="Make the previous champion champion again, and register nothing.")
@data_dir_option
def register(
    experiments: list[str],
    model: str,
    name: str,
    metric: str,
    select_on_test: bool,
    dry_run: bool,
    rollback: bool,
    data_dir: str,
) -> None:
    """Register the best finished run; the alias champion moves to it if it beats the champion."""
    if metric.startswith("test_") and not select_on_test:
        raise click.BadParameter(
            f"{metric} would select on test data; use val_accuracy, or insist with"
            " --select-on-test.",
            param_hint="--metric",
        )
    if rollback and dry_run:
        raise click.UsageError("--rollback and --dry-run exclude each other.")
    constructor(model)
    from fashion.data.dataset import load_dataset
    from fashion.tracking import registry, store
    from fashion.tracking.query import Query

    dataset = None if rollback else load_dataset(data_dir)
    store.connect()
    if dataset is None:
        outcome = registry.rollback(name)
    else:
        query = Query(experiments, models=[model], metric=metric)
        outcome = registry.register(name, query, dataset, dry_run=dry_run)
    click.echo(f"{'Dry run: ' if dry_run else ''}{outcome}")


if __name__ == "__main__":
    register()
