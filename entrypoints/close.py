"""Close runs whose process has died: mlflow run . -e close"""

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.options import switch
from entrypoints.cli.types import RunId, RunToResume


@click.command(cls=Command)
@click.option(
    "--run",
    "run_id",
    type=RunId(),
    default="",
    metavar="RUN",
    help="Mark this RUNNING run as KILLED, wherever it was started. Only you can know that its"
    " process has died.",
)
@switch("--kept", help="Only list the unfinished runs that this machine can continue.")
@click.option(
    "--forget",
    type=RunToResume(),
    default="",
    metavar="RUN",
    help="Delete what this machine keeps of an unfinished run; it can no longer be continued.",
)
def close(run_id: str, kept: bool, forget: str) -> None:
    """Mark as KILLED the RUNNING runs whose process on this machine has died."""
    if sum(map(bool, (run_id, kept, forget))) > 1:
        raise click.UsageError("--run, --kept and --forget are mutually exclusive.")
    from fashion import advice
    from fashion.tracking import checkpoint, groups, runs, store

    if kept:
        for each in checkpoint.unfinished():
            written = checkpoint.written_at(each)
            click.echo(f"{each}  {written:%Y-%m-%d %H:%M}  {groups.continuation(each)}".rstrip())
        return
    if forget:
        with checkpoint.held(forget):
            checkpoint.forget(forget)
        click.echo(f"{forget}: forgotten")
        return
    store.connect()
    if run_id:
        runs.close(run_id)
        click.echo(f"{run_id}: closed")
        return
    for each in runs.close_stale():
        command = groups.continuation(each)
        click.echo(f"{each}: closed" + (f"; continue with {command}" if command else ""))
    for each in runs.unstarted():
        click.echo(
            f"{each}: opened by mlflow run, but not begun; if it has failed, end it with"
            f" {advice.command('close', run=each)}"
        )


if __name__ == "__main__":
    program.run(close)
