"""End runs whose process is gone: mlflow run . -e close"""

import click

from entrypoints.cli.command import Command


@click.command(cls=Command)
def close() -> None:
    """End, as KILLED, the runs that say RUNNING though their process on this machine died."""
    from fashion.tracking import checkpoint, runs, store

    store.connect()
    for run_id in runs.close_stale():
        hint = "" if checkpoint.is_empty(run_id) else f"; go on by -P resume={run_id}"
        click.echo(f"{run_id}: closed{hint}")


if __name__ == "__main__":
    close()
