"""Compare two models image by image: mlflow run . -e diff -P a=RUN"""

import click

from entrypoints.cli.command import Command
from entrypoints.cli.options import data_dir_option
from fashion.settings.task import CHAMPION_URI

SPLITS = ("validation", "test")


@click.command(cls=Command)
@click.option(
    "--a",
    default="",
    metavar="MODEL",
    help="MLflow URI of a model, or the id of its run, of which compare shows the beginning.",
)
@click.option("--b", default=CHAMPION_URI, show_default=True, metavar="MODEL", help="The other.")
@click.option(
    "--split",
    type=click.Choice(SPLITS),
    default=SPLITS[0],
    show_default=True,
    help="Images to compare on. Choose between models on validation images only.",
)
@data_dir_option
def diff(a: str, b: str, split: str, data_dir: str) -> None:
    """Show what two models classify differently, and whether that can be chance.

    The predictions are those that the runs have kept; a model of which none are kept is evaluated.
    """
    if not a or not b:
        raise click.UsageError("Give two models to compare: --a and --b.")
    from fashion.analysis import difference
    from fashion.data.dataset import load_dataset
    from fashion.tracking import answers, records, store

    dataset = load_dataset(data_dir)
    store.connect()
    first, second = (answers.find(each, split, dataset) for each in (a, b))
    subset = answers.same_images(first, second)
    found = difference.Difference(
        (first.name, second.name),
        split,
        answers.answers(first, split),
        answers.answers(second, split),
    )
    click.echo(difference.render(found), nl=False)
    click.echo(f"Logged to run {records.log_difference(found, subset)}", err=True)


if __name__ == "__main__":
    diff()
