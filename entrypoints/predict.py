"""Name what images show: mlflow run . -e predict -P images=shoe.jpg"""

import re
from pathlib import Path
from typing import Any

import click

from entrypoints.options import Command, data_dir_option


class Indices(click.ParamType):
    """Indices of test images: numbers and ranges, separated by commas."""

    name = "indices"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        from fashion.settings.task import TEST_SIZE

        indices: list[int] = []
        for part in filter(None, (part.strip() for part in value.split(","))):
            match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
            if match is None:
                self.fail(f"{part!r} is neither an index nor a range like 10-14.", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if not first <= last < TEST_SIZE:
                self.fail(f"{part} does not go up within 0 to {TEST_SIZE - 1}.", param, ctx)
            indices += range(first, last + 1)
        return indices


class OutputFile(click.ParamType):
    """A file that can be written, its format told by its suffix; None if it is empty."""

    name = "file"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | None:
        if not value:
            return None
        path = Path(value)
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{value} does not end in {' or '.join(self.suffixes)}.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"there is no folder {path.parent} to write {path.name} to.", param, ctx)
        if path.is_dir():
            self.fail(f"{value} is a folder.", param, ctx)
        return path


@click.command(cls=Command)
@click.option(
    "--images",
    "paths",
    multiple=True,
    default=[""],
    metavar="PATH",
    help="A PNG or JPEG file, or a folder of them; may be repeated.",
)
@click.option(
    "--indices",
    type=Indices(),
    default="",
    help='Test images, for example "0,5,10-14"; their true class is shown too.',
)
@click.option(
    "--model-uri",
    default="models:/fashion-mnist-cnn@champion",
    show_default=True,
    help="Which model to ask.",
)
@click.option(
    "--top",
    type=click.IntRange(min=1, max=10),
    default=3,
    show_default=True,
    help="How many classes to name for each image.",
)
@click.option(
    "--invert",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Whether files show dark on light; auto looks at their corners.",
)
@click.option(
    "--output",
    type=OutputFile(".csv", ".json"),
    default="",
    help="Write the answers there too, as .csv or .json.",
)
@click.option(
    "--figure",
    type=OutputFile(".png"),
    default="",
    help="Draw the first 60 images with their classes there, as .png.",
)
@data_dir_option
def predict(
    paths: tuple[str, ...],
    indices: list[int],
    model_uri: str,
    top: int,
    invert: str,
    output: Path | None,
    figure: Path | None,
    data_dir: str,
) -> None:
    """Classify image files, test images, or both.

    A file that cannot be read is named and skipped; the exit status is 1 then.
    """
    if not any(paths) and not indices:
        raise click.UsageError("Give --images, --indices, or both.")
    from fashion.data.dataset import load_dataset
    from fashion.inference import photographs, predict
    from fashion.tracking import models, store

    samples, skipped = [], 0
    for file in (file for path in paths if path for file in photographs.find(Path(path))):
        try:
            samples.append(predict.from_file(file, invert))
        except photographs.ImageError as error:
            click.echo(error, err=True)
            skipped += 1
    if indices:
        test = load_dataset(data_dir).test
        samples += [predict.from_subset(test, index) for index in indices]
    if samples:
        store.connect()
        answers = predict.classify(models.load(model_uri), samples, top)
        click.echo(predict.render(answers), nl=False)
        if output:
            predict.write(answers, output)
        if figure:
            predict.draw(answers, figure)
    if skipped:
        raise click.ClickException(f"{skipped} skipped as unreadable")


if __name__ == "__main__":
    predict()
