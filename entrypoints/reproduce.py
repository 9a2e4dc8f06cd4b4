"""Train a model again: mlflow run . -e reproduce -P model_uri=models:/fashion-mnist-cnn@champion"""

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.options import data_dir_option, model_uri_option
from fashion.settings.task import CHAMPION_URI


@click.command(cls=Command)
@model_uri_option
@data_dir_option
def reproduce(model_uri: str, data_dir: str) -> None:
    """Train a model again from its commit, lock and settings; compare the weights bit for bit.

    The commit is checked out into a temporary folder, with an environment of its own. Fails if any
    bit differs.
    """
    from fashion.analysis.reproduction import DIGITS, Reproduction, render
    from fashion.data.download import locate
    from fashion.tracking import answers, records, reproduction, store

    store.connect()
    source = answers.find(model_uri or CHAMPION_URI)
    plan = reproduction.plan(source)
    directory = locate(data_dir)
    click.echo(f"{source.name}: training again at commit {plan.commit[:DIGITS]}")
    for remark in plan.remarks:
        click.echo(f"Weights may differ: {remark}")
    again = reproduction.train(plan, directory, lambda line: click.echo(f"  {line}"))
    found = Reproduction(source.name, plan.commit, plan.then, again)
    click.echo()
    click.echo(render(found), nl=False)
    run_id = records.log_reproduction(found, source.model_id)
    click.echo(f"Logged to run {run_id}", err=True)
    if not found.is_reproduced:
        raise reproduction.ReproductionError(found.verdict)


if __name__ == "__main__":
    program.run(reproduce)
