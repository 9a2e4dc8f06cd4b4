"""All commands in one list: python -m entrypoints"""

import click

from entrypoints.cli import program
from entrypoints.cli.mlproject import ENTRY_POINTS, command_of


class Commands(click.Group):
    """The entry points, each imported when it is asked for."""

    def list_commands(self, _: click.Context) -> list[str]:
        return list(ENTRY_POINTS)

    def get_command(self, _: click.Context, name: str) -> click.Command | None:
        return command_of(name) if name in ENTRY_POINTS else None


@click.command(cls=Commands)
def commands() -> None:
    """Train, compare, register and use image classifiers with MLflow.

    python -m entrypoints COMMAND --help explains a command; mlflow run . -e COMMAND runs it as an
    MLflow project.
    """


if __name__ == "__main__":
    program.run(commands, prog_name="python -m entrypoints")
