"""Log runs that could not be logged: mlflow run . -e replay"""

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.options import data_dir_option


@click.command(cls=Command)
@data_dir_option
def replay(data_dir: str) -> None:
    """Log the runs that this machine trained while the tracking store was unreachable."""
    from fashion.data.dataset import Dataset
    from fashion.data.sources import load_for
    from fashion.settings.experiment import Experiment
    from fashion.tracking import store, training

    def load(asked: Experiment) -> Dataset:
        return load_for(asked, data_dir)

    store.connect()
    for run_id, outcome in training.replay(load):
        click.echo(f"{run_id}: {outcome}")


if __name__ == "__main__":
    program.run(replay)
