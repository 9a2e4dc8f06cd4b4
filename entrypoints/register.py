"""Register the best model and update the champion: mlflow run . -e register"""

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.options import (
    data_options,
    declared_options,
    experiment_option,
    settings_options,
    switch,
)
from fashion.models.catalogue import constructor
from fashion.settings.comparison import Query
from fashion.settings.gate import GATE_OPTIONS, Gate
from fashion.settings.metrics import DEFAULT_METRIC, SELECTING_METRICS
from fashion.settings.task import FASHION_MNIST, MODEL_NAME


@click.command(cls=Command)
@experiment_option
@settings_options("model")
@click.option(
    "--name",
    default="",
    help=f"Name of the registered model. Default: {MODEL_NAME}; of other data, their name.",
)
@click.option(
    "--metric",
    type=click.Choice(SELECTING_METRICS),
    default=DEFAULT_METRIC,
    show_default=True,
    help="Metric to select the best run and the champion by.",
)
@switch("--select-on-test", help="Allow a test metric for selection; its value is then optimistic.")
@declared_options(list(GATE_OPTIONS.values()))
@switch("--dry-run", help="Print what would be done without doing it.")
@switch("--rollback", help="Restore the previous champion; register nothing.")
@data_options
def register(
    experiments: list[str],
    model: str,
    name: str,
    metric: str,
    select_on_test: bool,
    min_p: float,
    min_gain: float,
    force: bool,
    dry_run: bool,
    rollback: bool,
    data_dir: str,
    data: str,
    image_size: int,
    strict: bool,
) -> None:
    """Register the best finished run, and make it champion if it beats the current champion.

    If it is not better by more than chance, it becomes the challenger.
    """
    if metric.startswith("test_") and not select_on_test:
        raise click.BadParameter(
            f"{metric} would select on test data; use {DEFAULT_METRIC}, or allow it with"
            " --select-on-test.",
            param_hint="--metric",
        )
    if rollback and (dry_run or force):
        raise click.UsageError("--rollback excludes --dry-run and --force.")
    constructor(model)
    from fashion.data.sources import load_dataset
    from fashion.tracking import registry, store

    if rollback and data == FASHION_MNIST.name:
        name = name or MODEL_NAME  # without reading the data
    dataset = None if rollback and name else load_dataset(data_dir, data, image_size, strict)
    name = name or (dataset.task.model_name if dataset else "")
    store.connect()
    if rollback:
        outcome = registry.rollback(name)
    else:
        assert dataset is not None
        query = Query(experiments, models=[model], metric=metric)
        gate = Gate(min_p, min_gain, force)
        outcome = registry.register(name, query, dataset, gate=gate, dry_run=dry_run)
    click.echo(f"{'Dry run: ' if dry_run else ''}{outcome}")


if __name__ == "__main__":
    program.run(register)
