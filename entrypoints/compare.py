"""Compare training runs: mlflow run . -e compare"""

from pathlib import Path

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command, report_written
from entrypoints.cli.options import declared_options, experiment_option, names, switch
from entrypoints.cli.types import UserPath
from fashion.settings.comparison import QUERY_OPTIONS, TABLE_FORMATS, Query


@click.command(cls=Command)
@experiment_option
@click.option("--filter", "filter_string", default="", help="Filter in MLflow's search syntax.")
@names("--model", "models", metavar="NAMES", help="Only these models. Default: all.")
@declared_options(list(QUERY_OPTIONS.values()))
@switch("--group", help="Show mean and standard deviation over seeds instead of single runs.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(TABLE_FORMATS),
    default=TABLE_FORMATS[0],
    show_default=True,
    help="table fits a terminal of 80 columns; the other formats contain every column.",
)
@click.option(
    "--output",
    type=UserPath(),
    default="",
    metavar="FILE",
    help="Write the table to this file instead of printing it.",
)
@switch("--log", help="Log the table and a figure to MLflow.")
def compare(
    experiments: list[str],
    filter_string: str,
    models: list[str],
    metric: str,
    top: int,
    latest_per_model: bool,
    group: bool,
    output_format: str,
    output: str,
    log: bool,
) -> None:
    """Show training runs as a table, best first."""
    if group and latest_per_model:
        raise click.UsageError("--group and --latest-per-model are mutually exclusive.")
    from fashion.analysis import comparison
    from fashion.tracking import query, store, views

    store.connect()
    asked = Query(experiments, filter_string, models, metric, top, latest_per_model)
    query.check_models(asked)
    table = query.groups(asked) if group else query.runs(asked)
    if output:
        comparison.write(table, output_format, Path(output), metric)
        report_written(output)
    else:
        click.echo(comparison.render(table, output_format, metric), nl=False)
    if not output and "run_id" in table and len(table):
        click.echo(views.advice(table["run_id"].iloc[0]), err=True)
    if log:
        from fashion.tracking import records  # imports torch, which takes seconds

        click.echo(f"Logged to run {records.log_comparison(table)}", err=True)


if __name__ == "__main__":
    program.run(compare)
