"""Compare two models image by image: mlflow run . -e diff -P a=RUN"""

import click

from entrypoints.cli.command import Command
from entrypoints.cli.options import data_dir_option
from fashion.settings.task import CHAMPION_URI


@click.command(cls=Command)
@click.option(
    "--a",
    default="",
    metavar="MODEL",
    help="MLflow URI of a model, or the id of its run, of which compare shows the beginning.",
)
@click.option("--b", default=CHAMPION_URI, show_default=True, metavar="MODEL", help="The other.")
@data_dir_option
def diff(a: str, b: str, data_dir: str) -> None:
    """Show which images only one of two models classifies correctly, and whether that is chance.

    Compares them on the test images and, if both were validated on the same ones, on those. The
    predictions are those that the runs have kept; a model of which none are kept is evaluated.
    """
    if not a or not b:
        raise click.UsageError("Give two models to compare: --a and --b.")
    from fashion.analysis import difference
    from fashion.data.dataset import load_dataset
    from fashion.tracking import answers, records, store

    dataset = load_dataset(data_dir)
    store.connect()
    sources = [answers.find(each) for each in (a, b)]
    ours, theirs = (answers.on(source, dataset) for source in sources)
    names = sources[0].name, sources[1].name
    found, subsets = [], []
    for split in ours:
        if split in theirs and ours[split].subset.digest == theirs[split].subset.digest:
            each = (ours[split].predictions, theirs[split].predictions)
            found.append(difference.Difference(names, split, *each))
            subsets.append(ours[split].subset)
    click.echo(difference.render(found), nl=False)
    if len(found) == 1:
        click.echo("\nNot compared on validation images: both must have been held out the same.")
    run_id = records.log_differences(found, subsets, [source.model_id for source in sources])
    click.echo(f"Logged to run {run_id}", err=True)


if __name__ == "__main__":
    diff()
