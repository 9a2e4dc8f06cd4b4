"""Evaluate a model: mlflow run . -e evaluate -P model_uri=models:/fashion-mnist-cnn@champion"""

from pathlib import Path

import click

from entrypoints.cli.command import Command
from entrypoints.cli.options import data_dir_option, invert_option, model_uri_option
from entrypoints.cli.types import UserPath
from fashion.errors import printable


@click.command(cls=Command)
@model_uri_option
@click.option(
    "--images",
    type=UserPath(),
    default="",
    metavar="FOLDER",
    help="Folder of labelled pictures, in a folder for each class: FOLDER/Coat/1.png. Default: the"
    " test set.",
)
@invert_option
@data_dir_option
def evaluate(model_uri: str, images: str, invert: str, data_dir: str) -> None:
    """Evaluate a model on the test set, or on a folder of labelled pictures, and log a run."""
    from fashion.analysis import report
    from fashion.data.dataset import load_dataset
    from fashion.inference import classifier, labelled
    from fashion.tracking import answers, models, records, store
    from fashion.training import evaluation

    pictures = labelled.read(Path(images), invert) if images else None
    subset = pictures.subset if pictures else load_dataset(data_dir).test
    store.connect()
    source = answers.find(model_uri)
    model = models.load(source.uri)
    classifier.check(model, source.name)
    if pictures and pictures.others:
        listed = printable(", ".join(map(str, pictures.others)))
        click.echo(f"passed over, as they are no labelled pictures: {listed}", err=True)
    kind, files = ("labelled", pictures.files) if pictures else ("test", [])
    found = report.Report(source.name, kind, subset, evaluation.evaluate(model, subset))
    click.echo(report.render(found), nl=False)
    run_id = records.log_report(found, source.model_id, files, images)
    click.echo(f"Logged to run {run_id}", err=True)


if __name__ == "__main__":
    evaluate()
