"""Delete decoded pictures from the cache: mlflow run . -e clean"""

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command


@click.command(cls=Command)
@click.option(
    "--keep",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    metavar="GB",
    help="Gigabytes to keep, of the pictures used last.",
)
def clean(keep: float) -> None:
    """Delete decoded pictures from the cache; the next training decodes them again.

    The cache never grows above FASHION_CACHE_GB gigabytes, 20 by default.
    """
    from fashion.data import decoded

    left, removed = decoded.prune(int(keep * 1e9))
    click.echo(f"{removed / 1e9:.2f} GB removed from {decoded.folder()}, {left / 1e9:.2f} GB left")


if __name__ == "__main__":
    program.run(clean)
