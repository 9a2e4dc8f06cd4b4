"""Compare training runs: mlflow run . -e compare"""

from pathlib import Path

import click

from entrypoints.cli.command import Command
from entrypoints.cli.options import experiment_option, names, switch
from fashion.settings.metrics import METRICS


@click.command(cls=Command)
@experiment_option
@click.option("--filter", "filter_string", default="", help="In MLflow's search syntax.")
@names("--model", "models", metavar="NAMES", help="Only these models. Default: all.")
@click.option(
    "--metric",
    type=click.Choice(list(METRICS)),
    default="val_accuracy",
    show_default=True,
    help="What orders the runs, best first.",
)
@click.option(
    "--top", type=click.IntRange(min=1), default=20, show_default=True, help="How many to show."
)
@switch("--latest-per-model", help="Only the newest run of each model.")
@switch("--group", help="Mean and standard deviation over the seeds.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["table", "markdown", "csv", "json", "html"]),
    default="table",
    show_default=True,
    help="table fits a terminal of 80 columns; the others hold every column.",
)
@click.option("--output", default="", metavar="FILE", help="Write there instead of printing.")
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
        raise click.UsageError("--group and --latest-per-model exclude each other.")
    from fashion.analysis import comparison
    from fashion.tracking import query, records, store

    store.connect()
    asked = query.Query(experiments, filter_string, models, metric, top, latest_per_model)
    table = query.groups(asked) if group else query.runs(asked)
    if output:
        comparison.write(table, output_format, Path(output), metric)
    else:
        click.echo(comparison.render(table, output_format, metric), nl=False)
    if log:
        click.echo(f"Logged to run {records.log_comparison(table)}", err=True)


if __name__ == "__main__":
    compare()
