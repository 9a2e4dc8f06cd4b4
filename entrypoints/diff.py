"""Compare two models image by image: mlflow run . -e diff -P a=RUN"""

from typing import Any

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.data import Data
from entrypoints.cli.options import data_options
from fashion.settings.task import CHAMPION_URI


@click.command(cls=Command)
@click.option(
    "--a",
    default="",
    metavar="MODEL",
    help="MLflow URI of a model, or the id of its run, of which compare shows the beginning.",
)
@click.option(
    "--b",
    default="",
    metavar="MODEL",
    help=f"The other. Default: {CHAMPION_URI}; with other data, their champion.",
)
@data_options
def diff(a: str, b: str, **data_options: Any) -> None:
    """Show which images only one of two models classifies correctly, and whether that is chance.

    Compares them on the test images and, if both were validated on the same ones, on those. The
    predictions are those that the runs have kept; a model of which none are kept is evaluated.
    """
    if not a:
        raise click.UsageError("Give two models to compare: --a and --b.")
    from fashion.analysis import difference
    from fashion.tracking import answers, records, store

    data = Data(**data_options)
    dataset = data.dataset
    store.connect()
    sources = [answers.find(each) for each in (a, b or data.champion_uri)]
    ours, theirs = (answers.on(source, dataset) for source in sources)
    names = sources[0].name, sources[1].name
    found, subsets = [], []
    for split in ours:
        if split in theirs and ours[split].subset.digest == theirs[split].subset.digest:
            each = (ours[split].predictions, theirs[split].predictions)
            found.append(difference.Difference(names, split, *each, dataset.task.classes))
            subsets.append(ours[split].subset)
    click.echo(difference.render(found), nl=False)
    if len(found) == 1:
        click.echo("\nNot compared on validation images: both must have been held out the same.")
    run_id = records.log_differences(found, subsets, [source.model_id for source in sources])
    click.echo(f"Logged to run {run_id}", err=True)


if __name__ == "__main__":
    program.run(diff)
