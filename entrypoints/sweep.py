"""Search for good settings with Ray Tune: mlflow run . -e sweep -P space=sweeps/cnn.yaml"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from entrypoints.options import Command, RunToResume, data_dir_option
from entrypoints.train import experiment
from fashion.sweeps.plan import METRIC, Plan, Range, Space, parse, read

if TYPE_CHECKING:
    from fashion.settings.experiment import Experiment

# Options of `train` that are none of a trial: of the command, or of what comes after training. A
# trial that is stopped has no best epoch to go back to, so there is no early stopping but ASHA's.
NOT_SEARCHED = {"seeds", "resume", "data_dir", "system_metrics", "tta", "nproc", "patience"}
# The same for all trials, or their validation accuracies would not compare.
SHARED = ("val_size", "epochs", "device")
# More combinations than that are not checked one by one before the first of them is trained.
CHECKED_CORNERS = 2_000


@click.command(cls=Command)
@click.option(
    "--space",
    default="sweeps/cnn.yaml",
    show_default=True,
    metavar="FILE",
    help="What to search: options of train, each with a value, a list of values or a range.",
)
@click.option(
    "--search",
    type=click.Choice(["random", "grid", "optuna"]),
    default="random",
    show_default=True,
    help="How configurations are chosen; optuna learns from the trials before.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Configurations that random and optuna try; grid tries all.",
)
@click.option(
    "--grace-epochs",
    type=click.IntRange(min=0),
    default=1,
    show_default=True,
    help="Epochs that each trial gets before ASHA may stop it for being worse than others; 0 stops"
    " none.",
)
@click.option(
    "--cpus-per-trial",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Cores, and threads, of a trial.",
)
@click.option(
    "--gpus-per-trial",
    type=click.FloatRange(min=0),
    default=0.0,
    show_default=True,
    help="GPUs of a trial, or a part of one.",
)
@click.option(
    "--retries",
    type=click.IntRange(min=0),
    default=3,
    show_default=True,
    help="How often a trial that fails, or whose node dies, goes on from its last epoch.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0, max=2**32 - 1),
    default=42,
    show_default=True,
    help="Seed of the search; that of the trainings is one of the space.",
)
@click.option(
    "--storage",
    default="",
    metavar="FOLDER",
    help="Where the state of the sweep is kept until it has finished; on a cluster a folder that"
    " all nodes see, or an address such as s3://bucket/path. Default: FASHION_STATE_DIR, else"
    " this user's state.",
)
@click.option(
    "--resume",
    type=RunToResume(),
    default="",
    metavar="RUN",
    help="Go on with this sweep that was stopped, latest for the last one on this machine; all"
    " other options are taken from it.",
)
@data_dir_option
@click.pass_context
def sweep(context: click.Context, resume: str, data_dir: str, **options: Any) -> None:
    """Train many configurations, compare them on validation data, and name the best."""
    if find_spec("ray") is None or find_spec("optuna") is None:
        raise click.ClickException("a sweep needs Ray and Optuna: uv sync --extra sweep")
    if resume:
        _refuse_others(context, options)
    else:
        options["text"] = read(Path(options["space"])).text
        _check(options)

    # Under `uv run` Ray would start workers by uv, which need not be on PATH; read on import.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    from fashion.data.dataset import load_dataset
    from fashion.sweeps import report, sweep
    from fashion.tracking import store

    store.connect()
    if resume:
        resume = sweep.unfinished(resume)
        options = sweep.kept(resume)
    space, shared = _check(options)
    plan = Plan(
        epochs=shared.recipe.epochs,
        cpus=options["cpus_per_trial"],
        gpus=options["gpus_per_trial"],
        **{name: options[name] for name in ("search", "trials", "seed", "grace_epochs", "retries")},
    )
    dataset = load_dataset(data_dir)
    run_id, best = sweep.run(
        resume, options, space, plan, experiment, dataset, shared.val_size, options["storage"]
    )
    click.echo(f"\nBest: {best.metrics[METRIC]:.2%} of the validation images, trial run")
    click.echo(f"{best.run_id}; to train it again and test it:\n")
    click.echo(report.command(best.config))
    click.echo(f"\nLogged as run {run_id}")


def _refuse_others(context: click.Context, options: Mapping[str, Any]) -> None:
    for option in context.command.params:
        if option.name in options and options[option.name] != option.get_default(context):
            raise click.UsageError(f"resume takes {option.name} from the sweep: leave it out.")


def _check(options: Mapping[str, Any]) -> "tuple[Space, Experiment]":
    """Return the search space, and one of its experiments for what all of them share.

    Raises:
        click.BadParameter: there is a configuration that `train` would refuse.
    """

    def refuse(message: str) -> NoReturn:
        raise click.BadParameter(f"{options['space']}: {message}", param_hint="--space")

    space = parse(options["text"], options["space"])
    for name in space.dimensions.keys() & NOT_SEARCHED:
        refuse(f"{name} is none of a trial's options.")
    for name in SHARED:
        if name in space.searched:
            refuse(f"{name} must be the same for all trials.")
    if options["search"] == "grid" and any(
        isinstance(value, Range) for value in space.dimensions.values()
    ):
        refuse("a grid takes lists of values, no ranges.")
    for corner in islice(space.corners(), CHECKED_CORNERS):
        try:
            shared = experiment(corner)
        except click.UsageError as error:
            refuse(error.format_message())
    if not shared.val_size:
        refuse("a sweep selects on validation data: val_size is 0.")
    return space, shared


if __name__ == "__main__":
    sweep()
