"""Look inside a model: mlflow run . -e explore"""

import click

from entrypoints.options import Command, ModelName, data_dir_option


@click.command(cls=Command)
@click.option(
    "--model",
    type=ModelName(),
    default="cnn",
    show_default=True,
    help="A model of fashion/models, untrained: baseline, nonlinear, nonlinear-fixed, cnn,"
    " compact, resnet.",
)
@click.option(
    "--model-uri",
    default="",
    metavar="URI",
    help="A trained model to explore instead, such as models:/fashion-mnist-cnn@champion.",
)
@click.option(
    "--hidden-units",
    type=click.IntRange(min=1, max=4096),
    default=10,
    show_default=True,
    help="Width of the hidden layer, or channels of the CNN, of the untrained model.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=42,
    show_default=True,
    help="Seed of the untrained model's weights.",
)
@click.option(
    "--index",
    type=click.IntRange(min=0, max=9999),
    default=0,
    show_default=True,
    help="Which test image to show the model.",
)
@click.option(
    "--output-dir",
    default="",
    metavar="DIRECTORY",
    help="Write the table and the figures there too.",
)
@data_dir_option
def explore(
    model: str,
    model_uri: str,
    hidden_units: int,
    seed: int,
    index: int,
    output_dir: str,
    data_dir: str,
) -> None:
    """Show a model's layers, its filters, and what it makes of one test image."""
    from pathlib import Path

    from fashion.analysis import layers
    from fashion.data.dataset import load_dataset, to_float
    from fashion.models import catalogue
    from fashion.settings.experiment import Architecture
    from fashion.settings.task import CLASSES
    from fashion.tracking import models, records, store

    test = load_dataset(data_dir).test
    store.connect()
    if model_uri:
        name, network = model_uri, models.rebuild(model_uri)
    else:
        name = f"{model}, untrained, {hidden_units} hidden units, seed {seed}"
        network = catalogue.build(model, seed, Architecture(hidden_units))
    exploration = layers.explore(
        network.eval(),
        to_float(test.images[index]),
        name=name,
        caption=f"test image {index}: {CLASSES[test.labels[index]]}",
    )
    click.echo(exploration.table, nl=False)
    if output_dir:
        layers.write(exploration, Path(output_dir))
    run_id = records.log_exploration(exploration.table, exploration.figures)
    click.echo(f"Logged to run {run_id}", err=True)


if __name__ == "__main__":
    explore()
