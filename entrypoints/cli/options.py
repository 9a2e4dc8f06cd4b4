"""Click options, those of a training run derived from the settings that declare them.

Nothing here imports torch or MLflow: `--help` and a mistyped option answer at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from click.core import ParameterSource

from entrypoints.cli.types import RunToResume
from fashion.models.catalogue import KNOWN
from fashion.settings.experiment import OPTIONS, Experiment
from fashion.settings.option import Option, split_names
from fashion.settings.presets import PRESETS

# Options of the commands that train, which say nothing of what is trained.
COMMAND_OPTIONS = ("seeds", "nproc", "resume", "data_dir", "system_metrics")


class Undeclared(click.Option):
    """An option that MLproject gives no default.

    MLflow logs whatever MLproject gives a default, and for good: what a preset decides, or few runs
    need, has its default here alone. `mlflow run -P name=value` passes it on all the same.
    """


def settings_options(*names: str) -> Callable:
    """Add these options of a training run."""
    return declared_options([OPTIONS[name] for name in names])


def declared_options(options: Sequence[Option], preset: bool = False) -> Callable:
    """Add the options that a settings class declares.

    Args:
        options: which.
        preset: whether the command has presets, so that MLproject must not decide what they do.
    """

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            kind = Undeclared if preset and option.preset else click.Option
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
    """Make the preset's settings the defaults of the options."""
    context.default_map = PRESETS[preset]
    return preset


def training_options(command: Callable) -> Callable:
    """Add the options of the commands that train: all settings, and how to run them."""
    options: list[Callable] = [
        declared_options(list(OPTIONS.values()), preset=True),
        click.option(
            "--seeds",
            type=click.IntRange(min=1, max=1000),
            default=1,
            show_default=True,
            help="Number of runs, with consecutive seeds, as children of one run.",
        ),
        click.option(
            "--nproc",
            type=click.IntRange(min=1, max=1000),
            default=1,
            show_default=True,
            help="Processes of this machine that share each batch (data-parallel training),"
            " each on its own GPU or on its part of the cores.",
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
        cls=Undeclared,
        type=RunToResume(),
        default="",
        metavar="RUN",
        help=help_text,
    )


def experiment_asked_for(parameters: Mapping[str, Any]) -> Experiment:
    """Return the experiment that a command's parameters describe, once this machine can train it.

    Raises:
        SettingError: two of them contradict each other, or as for `build.check`.
    """
    experiment = Experiment.from_options(
        {name: value for name, value in parameters.items() if name in OPTIONS}
    )
    from fashion.training.build import check  # imports torch

    check(experiment)
    return experiment


def settings_typed(context: click.Context) -> dict[str, Any]:
    """Return the settings that were typed, by name.

    Of those that MLproject passes on in every run, its default may not be what was asked for.
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
    """Declare an option that is true when given alone, and takes true or false from MLproject."""
    return click.option(
        name, type=bool, is_flag=False, flag_value=True, default=False, **attributes
    )


def names(name: str, *declarations: str, **attributes: Any) -> Callable:
    """Declare an option that takes names, repeated or separated by commas."""

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
        help="Experiments to search, repeated or separated by commas; all for all of them."
        " Default: the active one.",
    )(command)


def data_dir_option(command: Callable) -> Callable:
    """Add --data-dir."""
    return click.option(
        "--data-dir",
        default="",
        metavar="DIRECTORY",
        help="Directory of the dataset, which is downloaded there if it is missing. Default:"
        " FASHION_DATA_DIR, else the cache, else Debian's package.",
    )(command)


def model_uri_option(command: Callable) -> Callable:
    """Add --model-uri."""
    return click.option(
        "--model-uri",
        default="models:/fashion-mnist-cnn@champion",
        show_default=True,
        metavar="URI",
        help="Model to load, by MLflow's address.",
    )(command)
