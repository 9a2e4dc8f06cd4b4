"""Click options; those of a training run are derived from the settings classes.

Nothing here imports torch or MLflow, so that `--help` and usage errors are fast.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from entrypoints.cli.types import RunToResume, UserPath
from fashion.models.catalogue import KNOWN
from fashion.settings.experiment import OPTIONS, Experiment
from fashion.settings.option import Option, split_names
from fashion.settings.presets import PRESETS
from fashion.settings.task import CHAMPION_URI

# Options of the training commands that are not settings of the experiment.
COMMAND_OPTIONS = ("seeds", "nproc", "resume", "allow_changes", "data_dir", "system_metrics")


class CommandLineOnly(click.Option):
    """An option that is not listed in MLproject.

    MLflow logs the default of each listed parameter, and the logged value cannot be changed. So
    options that a preset may set, or that few runs need, have a default only here. `mlflow run
    -P name=value` passes unlisted parameters on too.
    """


def settings_options(*names: str) -> Callable:
    """Add the named options of a training run."""
    return declared_options([OPTIONS[name] for name in names])


def declared_options(options: Sequence[Option], preset: bool = False) -> Callable:
    """Add options declared in a settings class.

    Args:
        options: the options.
        preset: whether the command has presets; options that they may set stay out of MLproject.
    """

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            kind = CommandLineOnly if preset and option.preset else click.Option
            command = _click_option(option, kind)(command)
        return command

    return add


def _click_option(option: Option, kind: type[click.Option]) -> Callable:
    attributes: dict[str, Any] = {"help": option.help, "metavar": option.metavar}
    if option.name == "model":
        attributes["help"] = f"{option.help} One of {KNOWN}."
    if option.name == "preset":
        attributes |= {"is_eager": True, "callback": _apply_preset}
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


def _apply_preset(context: click.Context, _: click.Parameter, preset: str) -> str:
    """Use the preset's settings as defaults of the options."""
    context.default_map = PRESETS[preset]
    return preset


def training_options(command: Callable) -> Callable:
    """Add the options of the training commands: all settings, and how to run them."""
    options: list[Callable] = [
        declared_options(list(OPTIONS.values()), preset=True),
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


def allow_changes_option(command: Callable) -> Callable:
    """Add --allow-changes."""
    return switch(
        "--allow-changes",
        cls=CommandLineOnly,
        help="Resume although the processor, torch or this code has changed; the run is tagged with"
        " the changes.",
    )(command)


def experiment_asked_for(parameters: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a command's parameters, after checking it against this machine.

    Raises:
        SettingError: two settings contradict each other, or as for `build.check`.
    """
    experiment = Experiment.from_options(
        {name: value for name, value in parameters.items() if name in OPTIONS}
    )
    from fashion.training.build import check  # imports torch

    check(experiment)
    return experiment


def settings_typed(context: click.Context) -> dict[str, Any]:
    """Return the explicitly given settings by name.

    `mlflow run` passes the parameters listed in MLproject in every run, so their defaults do not
    count.
    """
    typed = {}
    values = Experiment.from_options(
        {name: value for name, value in context.params.items() if name in OPTIONS}
    ).to_dict()
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in OPTIONS:
            continue
        default = context.params[name] == parameter.get_default(context)
        from_mlproject = not OPTIONS[name].preset and default
        source = context.get_parameter_source(name)
        if source is ParameterSource.COMMANDLINE and not from_mlproject:
            typed[name] = values[name]
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
        default=CHAMPION_URI,
        show_default=True,
        metavar="URI",
        help="MLflow URI of the model, or the id of its run, of which compare shows the beginning.",
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
