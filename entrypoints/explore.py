"""Look inside a model: mlflow run . -e explore"""

import click

from entrypoints.options import Command, ModelName, data_dir_option


@click.command(cls=Command)
@click.option(
    "--model",
    type=ModelName(),
    default="cnn",
    show_default=True,
    help="A model of fashion/models.py, untrained: baseline, nonlinear, nonlinear-fixed, cnn,"
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

    from fashion import data, explore, models, registry, runs, tracking

    test = data.load(data_dir).test
    runs.connect()
    if model_uri:
        name, network = model_uri, registry.rebuild(model_uri)
    else:
        name = f"{model}, untrained, {hidden_units} hidden units, seed {seed}"
        network = models.build(model, seed, models.Architecture(hidden_units))
    exploration = explore.explore(
        network.eval(),
        data.to_float(test.images[index]),
        name=name,
        caption=f"test image {index}: {data.CLASSES[test.labels[index]]}",
    )
    click.echo(exploration.table, nl=False)
    if output_dir:
        explore.write(exploration, Path(output_dir))
    run_id = tracking.log_exploration(exploration.table, exploration.figures)
    click.echo(f"Logged to run {run_id}", err=True)


if __name__ == "__main__":
    explore()
