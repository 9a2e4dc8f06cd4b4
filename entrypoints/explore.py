"""Explore the layers of a model: mlflow run . -e explore"""

from typing import Any

import click

from entrypoints.cli.command import Command, report_written
from entrypoints.cli.options import data_dir_option, experiment_asked_for, settings_options
from entrypoints.cli.types import UserPath
from fashion.settings.experiment import Architecture
from fashion.settings.option import options_of
from fashion.settings.task import CHAMPION_URI, TEST_SIZE


@click.command(cls=Command)
@settings_options("model", *options_of(Architecture), "seed")
@click.option(
    "--model-uri",
    default="",
    metavar="URI",
    help=f"MLflow URI of a trained model to explore, such as {CHAMPION_URI}, or the id of its run,"
    " of which compare shows the beginning. Default: an untrained model.",
)
@click.option(
    "--index",
    type=click.IntRange(min=0, max=TEST_SIZE - 1),
    default=0,
    show_default=True,
    help="Index of the test image to show to the model.",
)
@click.option(
    "--output-dir",
    type=UserPath(),
    default="",
    metavar="DIRECTORY",
    help="Directory to also write the table and figures to.",
)
@data_dir_option
@click.pass_context
def explore(
    context: click.Context,
    model_uri: str,
    index: int,
    output_dir: str,
    data_dir: str,
    **_settings: Any,
) -> None:
    """Show a model's layers, its filters, and its feature maps for one test image."""
    asked = experiment_asked_for(context)
    from pathlib import Path

    from fashion.analysis import layers
    from fashion.data.dataset import load_dataset, to_float
    from fashion.models import catalogue
    from fashion.settings.task import CLASSES
    from fashion.tracking import models, query, records, store

    test = load_dataset(data_dir).test
    store.connect()
    if model_uri:
        name, network = model_uri, models.rebuild(query.model_uri(model_uri))
    else:
        width, seed = asked.architecture.hidden_units, asked.recipe.seed
        name = f"{asked.model}, untrained, {width} hidden units, seed {seed}"
        network = catalogue.build(asked.model, seed, asked.architecture)
    exploration = layers.explore(
        network.eval(),
        to_float(test.images[index]),
        name=name,
        caption=f"test image {index}: {CLASSES[test.labels[index]]}",
    )
    click.echo(exploration.table, nl=False)
    if output_dir:
        layers.write(exploration, Path(output_dir))
        report_written(output_dir)
    run_id = records.log_exploration(exploration.table, exploration.figures)
    click.echo(f"Logged to run {run_id}", err=True)


if __name__ == "__main__":
    explore()
