"""Close runs whose process has died: mlflow run . -e close"""

import click

from entrypoints.cli.command import Command


@click.command(cls=Command)
def close() -> None:
    """Mark as KILLED the RUNNING runs whose process on this machine has died."""
    from fashion.tracking import groups, runs, store

    store.connect()
    for run_id in runs.close_stale():
        command = groups.continuation(run_id)
        click.echo(f"{run_id}: closed" + (f"; continue with {command}" if command else ""))


if __name__ == "__main__":
    close()
