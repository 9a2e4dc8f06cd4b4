"""Train one model as an MLflow run: mlflow run . -e train -P model=cnn"""

import click

from entrypoints.options import Command, ModelName, training_options


@click.command(cls=Command)
@click.option(
    "--model",
    type=ModelName(),
    default="cnn",
    show_default=True,
    help="A model of fashion/models.py: baseline, nonlinear, nonlinear-fixed, cnn.",
)
@training_options
def train(
    model: str,
    epochs: int,
    batch_size: int,
    lr: float,
    hidden_units: int,
    seed: int,
    val_size: int,
    device: str,
    kernels: str,
    data_dir: str,
    system_metrics: bool,
) -> None:
    """Train MODEL on Fashion-MNIST and log the run to MLflow."""
    from fashion import data, tracking
    from fashion.engine import Recipe

    dataset = data.load(data_dir)
    tracking.connect()
    run_id = tracking.train(
        tracking.Experiment(
            model, hidden_units, val_size, device, Recipe(epochs, batch_size, lr, seed, kernels)
        ),
        dataset,
        system_metrics=system_metrics,
    )
    click.echo(f"Logged as run {run_id}")


if __name__ == "__main__":
    train()
