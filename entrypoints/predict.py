"""Classify images: mlflow run . -e predict -P images=shoe.jpg"""

from pathlib import Path
from typing import Any

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command, report_written
from entrypoints.cli.data import Data
from entrypoints.cli.options import data_options, invert_option, model_uri_option
from entrypoints.cli.types import Indices, OutputFile, UserPath
from fashion.errors import SettingError, printable

USUAL_TOP = 3


@click.command(cls=Command)
@click.option(
    "--images",
    "paths",
    type=UserPath(),
    multiple=True,
    default=[""],
    metavar="PATH",
    help="Image file, or folder of such files and folders: PNG, JPEG, WebP, GIF, TIFF, BMP or AVIF;"
    " can be repeated.",
)
@click.option(
    "--indices",
    type=Indices(),
    default="",
    help='Indices of test images, such as "0,5,10-14"; their true class is shown too.',
)
@model_uri_option
@click.option(
    "--top",
    type=click.IntRange(min=1),
    default=USUAL_TOP,
    show_default=True,
    help="Number of classes to show for each image, most probable first.",
)
@invert_option
@click.option(
    "--output",
    type=OutputFile(".csv", ".json"),
    default="",
    help="Write the predictions to this .csv or .json file, and print a summary of them instead.",
)
@click.option(
    "--figure",
    type=OutputFile(".png"),
    default="",
    help="Also draw the first 60 images with their predictions to this .png file.",
)
@data_options
def predict(
    paths: tuple[str, ...],
    indices: list[int],
    model_uri: str,
    top: int,
    invert: str,
    output: Path | None,
    figure: Path | None,
    **data_options: Any,
) -> None:
    """Classify image files, test images, or both.

    Unreadable files are reported and skipped; the exit code is then 1. Files in a folder whose name
    is not an image's are named, too.
    """
    if not any(paths) and not indices:
        raise click.UsageError("Give --images, --indices, or both.")
    from fashion.inference import classifier, photographs, predict
    from fashion.tracking import models, query, store

    data, samples, skipped = Data(**data_options), [], 0
    if indices:
        data.check_index(max(indices), "indices")
    uri = model_uri or data.champion_uri
    store.connect()
    model, temperature, task = models.load_calibrated(query.model_uri(uri))
    classifier.check(model, uri, task)
    if indices:
        classifier.check_data(uri, task, data.dataset.task)
    photographs.check_invert(invert, task)
    if top > len(task.classes):
        if top != USUAL_TOP:
            raise SettingError(f"{top} is more than the {len(task.classes)} classes", "top")
        top = len(task.classes)
    for path in filter(None, paths):
        found = photographs.find(Path(path))
        for file in found.images:
            try:
                samples.append(predict.from_file(file, invert, task))
            except photographs.ImageError as error:
                click.echo(error, err=True)
                skipped += 1
        if found.others:
            listed = printable(", ".join(str(other) for other in found.others))
            click.echo(
                f"passed over, as the names are no images': {len(found.others)} ({listed})",
                err=True,
            )
    samples += [predict.from_subset(data.dataset.test, index) for index in indices]
    if samples:
        answers = predict.classify(model, samples, top, temperature, task.classes)
        click.echo(predict.summarise(answers) if output else predict.render(answers), nl=False)
        if output:
            predict.write(answers, output)
            report_written(output)
        if figure:
            predict.draw(answers, figure)
            report_written(figure)
    if skipped:
        raise click.ClickException(f"unreadable files skipped: {skipped}")


if __name__ == "__main__":
    program.run(predict)
