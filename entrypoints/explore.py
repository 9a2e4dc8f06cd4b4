"""Explore the layers of a model: mlflow run . -e explore"""

from typing import Any

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command, report_written
from entrypoints.cli.data import Data
from entrypoints.cli.options import data_options, experiment_asked_for, settings_options
from entrypoints.cli.types import UserPath
from fashion.settings.experiment import Architecture
from fashion.settings.option import options_of
from fashion.settings.task import CHAMPION_URI


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
    type=click.IntRange(min=0),
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
@data_options
@click.pass_context
def explore(
    context: click.Context,
    model_uri: str,
    index: int,
    output_dir: str,
    data_dir: str,
    data: str,
    image_size: int,
    strict: bool,
    **_settings: Any,
) -> None:
    """Show a model's layers, its filters, and its feature maps for one test image."""
    asked = experiment_asked_for(context)
    from pathlib import Path

    import torch

    from fashion.analysis import layers
    from fashion.data.dataset import to_float
    from fashion.inference import classifier
    from fashion.tracking import archive, models, query, records, store
    from fashion.training.build import build

    named = Data(data_dir, data, image_size, strict)
    named.check_index(index, "index")
    test = named.dataset.test
    store.connect()
    if model_uri:
        name, uri = model_uri, query.model_uri(model_uri)
        classifier.check_data(model_uri, archive.task_of(uri), test.task)
        network = models.rebuild(uri)
    else:
        width, seed = asked.architecture.hidden_units, asked.recipe.seed
        name = f"{asked.model}, untrained, {width} hidden units, seed {seed}"
        network = build(asked, named.dataset.train)[0].cpu()
    exploration = layers.explore(
        network.eval(),
        to_float(test.take(torch.tensor([index])))[0],
        name=name,
        caption=f"test image {index}: {test.task.classes[test.labels[index]]}",
        task=test.task,
    )
    click.echo(exploration.table, nl=False)
    if output_dir:
        layers.write(exploration, Path(output_dir))
        report_written(output_dir)
    run_id = records.log_exploration(exploration.table, exploration.figures)
    click.echo(f"Logged to run {run_id}", err=True)


if __name__ == "__main__":
    program.run(explore)
