"""Evaluate a model: mlflow run . -e evaluate -P model_uri=models:/fashion-mnist-cnn@champion"""

from pathlib import Path
from typing import Any

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.data import Data
from entrypoints.cli.options import data_options, invert_option, model_uri_option
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
@data_options
def evaluate(model_uri: str, images: str, invert: str, **data_options: Any) -> None:
    """Evaluate a model on the test set, or on a folder of labelled pictures, and log a run."""
    from fashion.analysis import report
    from fashion.inference import classifier, labelled, photographs
    from fashion.tracking import answers, models, records, store
    from fashion.training import evaluation

    data = Data(**data_options)
    uri = model_uri or data.champion_uri
    store.connect()
    source = answers.find(uri)
    model, _, task = models.load_calibrated(source.uri)
    classifier.check(model, source.name, task)
    photographs.check_invert(invert, task)
    pictures = labelled.read(Path(images), task, invert) if images else None
    subset = pictures.subset if pictures else data.dataset.test
    classifier.check_data(source.name, task, subset.task)
    if pictures and pictures.others:
        listed = printable(", ".join(map(str, pictures.others)))
        click.echo(f"passed over, as they are no labelled pictures: {listed}", err=True)
    kind, files = ("labelled", pictures.files) if pictures else ("test", [])
    found = report.Report(source.name, kind, subset, evaluation.evaluate(model, subset))
    click.echo(report.render(found), nl=False)
    run_id = records.log_report(found, source.model_id, files, images)
    click.echo(f"Logged to run {run_id}", err=True)


if __name__ == "__main__":
    program.run(evaluate)
