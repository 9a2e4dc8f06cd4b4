"""Search hyperparameters with Ray Tune: mlflow run . -e sweep -P space=sweeps/cnn.yaml"""

import os
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import click

from entrypoints.cli import program
from entrypoints.cli.command import Command
from entrypoints.cli.options import (
    COMMAND_OPTIONS,
    DATA_SETTINGS,
    data_options,
    declared_options,
    resume_option,
)
from fashion import advice
from fashion.errors import SettingError
from fashion.settings.experiment import OPTIONS, Experiment
from fashion.settings.metrics import described, written
from fashion.settings.task import FASHION_MNIST
from fashion.sweeps.plan import PLAN_OPTIONS, Plan, Range, Space, parse, read

# Options that do not apply to trials: those of the command, tta, which is evaluated after training,
# and patience, because ASHA decides when a trial stops.
NOT_SEARCHED = {*COMMAND_OPTIONS, "tta", "patience"}
# Must be equal for all trials, so that their validation accuracies are comparable.
SHARED = (*DATA_SETTINGS, "val_size", "epochs", "device")
# Maximum number of combinations to check before the first trial.
CHECKED_CORNERS = 2_000


def _absolute(_context: click.Context, _option: click.Parameter, storage: str) -> str:
    """Make a path absolute: workers, and a later --resume, run in other folders."""
    if not storage or "://" in storage:
        return storage
    return str(Path(storage).expanduser().absolute())


@click.command(cls=Command)
@click.option(
    "--space",
    default="sweeps/cnn.yaml",
    show_default=True,
    metavar="FILE",
    help="YAML file of the search space: options of train, each with a value, a list of values or"
    " a range.",
)
@declared_options(list(PLAN_OPTIONS.values()))
@click.option(
    "--storage",
    default="",
    callback=_absolute,
    metavar="FOLDER",
    help="Where to store the state of the sweep until it has finished; on a cluster a folder"
    " visible to all nodes, or an address such as s3://bucket/path. Default: FASHION_STATE_DIR,"
    " else the user's state directory.",
)
@resume_option(
    "Id of an interrupted sweep to continue, or latest for the last one on this machine. All other"
    " options are taken from it."
)
@data_options
@click.pass_context
def sweep(context: click.Context, resume: str, data_dir: str, **options: Any) -> None:
    """Train many configurations, compare them on validation data, and report the best."""
    advice.require("sweep", "optuna", "ray")
    if resume:
        _refuse_others(context, options)
    else:
        options["text"] = read(Path(options["space"])).text
        _check(options)

    # Under `uv run`, Ray would start workers with uv, which may not be on PATH. Read on import.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    from fashion.data.sources import load_for
    from fashion.sweeps import report, sweep
    from fashion.tracking import store, views

    store.connect()
    if resume:
        resume = sweep.unfinished(resume)
        options = sweep.load_options(resume)
    space, shared = _check(options)
    plan = Plan(shared.recipe.epochs, **{name: options[name] for name in PLAN_OPTIONS})
    dataset = load_for(shared, data_dir)
    val_size = shared.val_size
    if dataset.task != FASHION_MNIST and "val_size" not in space.dimensions:
        val_size = dataset.usual_val_size
        space.dimensions["val_size"] = val_size
    run_id, best = sweep.run(resume, options, space, plan, dataset, val_size, options["storage"])
    result = f"{described(plan.metric)} {written(plan.metric, best.metrics[plan.metric])}"
    click.echo(f"\nBest: trial {best.name}, {result},")
    click.echo(f"run {best.run_id}. To train it again and test it:\n")
    click.echo(report.command(best.config))
    click.echo(f"\nLogged as run {run_id}\n\n{views.advice(run_id, views.SWEEP_VIEW)}")


def _refuse_others(context: click.Context, options: Mapping[str, Any]) -> None:
    for option in context.command.params:
        if option.name in options and options[option.name] != option.get_default(context):
            raise click.UsageError(f"resume takes {option.name} from the sweep: omit it.")


def _check(options: Mapping[str, Any]) -> tuple[Space, Experiment]:
    """Return the search space, and one of its experiments, for the settings that all share.

    Raises:
        click.BadParameter: `train` would reject a configuration of the space.
    """

    def refuse(message: str) -> NoReturn:
        raise click.BadParameter(f"{options['space']}: {message}", param_hint="--space")

    from fashion.data.sources import located  # imports torch
    from fashion.training.build import check

    space = parse(options["text"], options["space"])
    # Beside the file, so that one space serves several data.
    for name in DATA_SETTINGS:
        value = options.get(name, OPTIONS[name].default)
        if value != OPTIONS[name].default:
            space.dimensions[name] = value
    if isinstance(space.dimensions.get("data"), str):
        space.dimensions["data"] = located(str(space.dimensions["data"]))
    for name in space.dimensions.keys() & NOT_SEARCHED:
        refuse(f"{name} is not an option of trials.")
    for name in SHARED:
        if name in space.searched:
            refuse(f"{name} must be the same for all trials.")
    if options["search"] == "grid" and any(
        isinstance(value, Range) for value in space.dimensions.values()
    ):
        refuse("grid search needs lists of values, not ranges.")
    for corner in islice(space.corners(), CHECKED_CORNERS):
        try:
            shared = Experiment.from_options(corner)
            check(shared)
        except SettingError as error:
            refuse(f"{error}.")
    if not shared.val_size:
        refuse("a sweep selects on validation data, but val_size is 0.")
    return space, shared


if __name__ == "__main__":
    program.run(sweep)
