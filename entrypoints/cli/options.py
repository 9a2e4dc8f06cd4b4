"""Click options; those of a training run are derived from the settings classes.

Nothing here imports torch or MLflow, so that `--help` and usage errors are fast.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from entrypoints.cli.types import RunToResume, Tag, UserPath
from fashion.errors import SettingError
from fashion.models.catalogue import KNOWN
from fashion.settings.experiment import OPTIONS, Experiment
from fashion.settings.option import Option, split_names
from fashion.settings.task import CHAMPION_URI, FASHION_MNIST

if TYPE_CHECKING:  # importing it takes seconds
    from fashion.data.dataset import Dataset

# Options of the training commands that are not settings of the experiment.
COMMAND_OPTIONS = (
    "config",
    "seeds",
    "nproc",
    "resume",
    "allow_changes",
    "data_dir",
    "system_metrics",
    "run_name",
    "tags",
)
# What a resumed run already has.
NOT_WITH_RESUME = ("config", "run_name", "tags")


class CommandLineOnly(click.Option):
    """An option that is not listed in MLproject.

    MLflow logs the default of each listed parameter, and the logged value cannot be changed. So
    options that a preset or a configuration may set, or that few runs need, have a default only
    here. `mlflow run -P name=value` passes unlisted parameters on too.
    """


def settings_options(*names: str) -> Callable:
    """Add the named options of a training run."""
    return declared_options([OPTIONS[name] for name in names])


def declared_options(
    options: Sequence[Option], kind: type[click.Option] = click.Option
) -> Callable:
    """Add options declared in a settings class."""

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = _click_option(option, kind)(command)
        return command

    return add


def _click_option(option: Option, kind: type[click.Option]) -> Callable:
    attributes: dict[str, Any] = {"help": option.help, "metavar": option.metavar}
    if option.name == "model":
        attributes["help"] = f"{option.help} One of {KNOWN}."
    if option.kind is bool:
        attributes |= {"is_flag": False, "flag_value": True}
    return click.option(
        f"--{option.name.replace('_', '-')}",
        cls=kind,
        type=option.type,
        default=",".join(option.default) if option.kind is tuple else option.default,
        show_default=option.kind not in (bool, tuple) and option.default != "",
        **attributes,
    )


def training_options(command: Callable) -> Callable:
    """Add the options of the training commands: all settings, and how to run them."""
    options: list[Callable] = [
        click.option(
            "--config",
            cls=CommandLineOnly,
            type=UserPath(),
            default="",
            metavar="FILE",
            help="Settings to start from: a YAML file such as a run's settings.yaml, or runs:/ID"
            " for those of a run. Other options override them.",
        ),
        declared_options(list(OPTIONS.values()), CommandLineOnly),
        click.option(
            "--seeds",
            type=click.IntRange(min=1, max=1000),
            default=1,
            show_default=True,
            help="Number of runs, with consecutive seeds; several become children of one run.",
        ),
        click.option(
            "--nproc",
            type=click.IntRange(min=1, max=1000),
            default=1,
            show_default=True,
            help="Number of data-parallel processes on this machine, which share each batch; each"
            " uses one GPU, or its share of the cores.",
        ),
        data_dir_option,
        switch("--system-metrics", help="Also log CPU, memory and network use."),
        click.option(
            "--run-name",
            cls=CommandLineOnly,
            default="",
            metavar="NAME",
            help="Name of the run in MLflow. Default: the model's.",
        ),
        click.option(
            "--tag",
            "tags",
            cls=CommandLineOnly,
            type=Tag(),
            multiple=True,
            metavar="KEY=VALUE",
            help="Tag of the run and its children; can be repeated.",
        ),
        switch(
            "--allow-changes",
            cls=CommandLineOnly,
            help="Resume although the processor, torch or this code has changed; the run is tagged"
            " with the changes.",
        ),
    ]
    for add in reversed(options):
        command = add(command)
    return command


def resume_option(help_text: str) -> Callable:
    """Add --resume."""
    return click.option(
        "--resume",
        cls=CommandLineOnly,
        type=RunToResume(),
        default="",
        metavar="RUN",
        help=help_text,
    )


def check_resume(context: click.Context) -> None:
    """Refuse options of a training command that contradict --resume, or need it."""
    if context.params["allow_changes"] and not context.params["resume"]:
        raise click.UsageError("allow-changes is an option of resume: add --resume.")
    for name in NOT_WITH_RESUME:
        if context.params["resume"] and context.params[name]:
            option = name.rstrip("s").replace("_", "-")
            raise click.UsageError(f"A resumed run keeps its own: omit --{option}.")


# What says which images are loaded; with --data-dir, which says where downloaded ones are.
DATA_SETTINGS = ("data", "image_size", "strict")


def data_options(command: Callable) -> Callable:
    """Add the options that say which images to use."""
    settings = [OPTIONS[name] for name in DATA_SETTINGS]
    return declared_options(settings, CommandLineOnly)(data_dir_option(command))


def with_usual_val_size(
    context: click.Context, asked: Experiment, dataset: "Dataset"
) -> Experiment:
    """Return the experiment with the data's usual `val_size`, unless another was given.

    Raises:
        SettingError: the data has no such split.
    """
    given = "val_size" in settings_typed(context) or context.params.get("config")
    if not given and dataset.task != FASHION_MNIST:
        asked = replace(asked, val_size=dataset.usual_val_size)
    dataset.check_val_size(asked.val_size)
    return asked


def experiment_asked_for(context: click.Context) -> Experiment:
    """Return the experiment of a command's parameters, after checking it against this machine.

    Raises:
        SettingError: two settings contradict each other, or as for `build.check`.
        FashionError: the configuration cannot be read.
    """
    typed = settings_typed(context)
    config = context.params.get("config")
    experiment = _configured(config, typed) if config else Experiment.from_options(typed)
    from fashion.data.sources import located  # imports torch
    from fashion.training.build import check

    check(experiment)
    return replace(experiment, data=located(experiment.data))


def _configured(config: str, typed: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a configuration describes, with the settings typed beside it."""
    if "preset" in typed:
        raise click.UsageError("--config has all settings: omit --preset, or put it into the file.")
    from fashion.tracking import configuration  # imports MLflow

    settings = configuration.read(config)
    try:
        return Experiment.from_options({**settings, **typed})
    except SettingError as error:
        if error.option in typed:
            raise
        raise SettingError(f"{config}: {error}", "config") from error


def settings_typed(context: click.Context) -> dict[str, Any]:
    """Return the explicitly given settings by name."""
    typed = {
        name: ",".join(value) if isinstance(value, tuple) else value
        for name, value in context.params.items()
        if name in OPTIONS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    }
    if "data" in typed:
        from fashion.data.sources import located  # imports torch

        typed["data"] = located(typed["data"])
    return typed


def switch(name: str, **attributes: Any) -> Callable:
    """Declare a flag that also accepts true or false, for MLproject."""
    return click.option(
        name, type=bool, is_flag=False, flag_value=True, default=False, **attributes
    )


def names(name: str, *declarations: str, **attributes: Any) -> Callable:
    """Declare an option for names, repeated or separated by commas."""

    def split(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[str]:
        return [name for value in values for name in split_names(value)]

    return click.option(
        name, *declarations, multiple=True, default=[""], callback=split, **attributes
    )


def experiment_option(command: Callable) -> Callable:
    """Add --experiment."""
    return names(
        "--experiment",
        "experiments",
        metavar="NAMES",
        help="Names of the experiments to search, repeated or separated by commas; all for all of"
        " them. Default: the active one.",
    )(command)


def data_dir_option(command: Callable) -> Callable:
    """Add --data-dir."""
    return click.option(
        "--data-dir",
        type=UserPath(),
        default="",
        metavar="DIRECTORY",
        help="Directory of the dataset; missing files are downloaded. Default: FASHION_DATA_DIR,"
        " else the cache, else Debian's package.",
    )(command)


def model_uri_option(command: Callable) -> Callable:
    """Add --model-uri."""
    return click.option(
        "--model-uri",
        default="",
        metavar="URI",
        help="MLflow URI of the model, or the id of its run, of which compare shows the beginning."
        f" Default: {CHAMPION_URI}; with other data, their champion.",
    )(command)


def invert_option(command: Callable) -> Callable:
    """Add --invert."""
    return click.option(
        "--invert",
        type=click.Choice(["auto", "always", "never"]),
        default="auto",
        show_default=True,
        help="Whether to invert image files, for dark on light; auto decides by what stands out"
        " more.",
    )(command)
