"""What the commands share: option types, groups of options, and how errors are shown.

Nothing here imports torch or MLflow before a command has been given its options: `--help` and a
mistyped option answer at once.
"""

import math
from collections.abc import Callable
from typing import Any

import click

from fashion.errors import FashionError


class Command(click.Command):
    """A command that shows the user's mistakes as one line, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FashionError as error:
            raise click.ClickException(str(error)) from error


class ModelName(click.ParamType):
    """The name of a model of `fashion.models`."""

    name = "model"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from fashion.models import MODELS

        if value not in MODELS:
            self.fail(f"{value!r} is not one of {', '.join(MODELS)}.", param, ctx)
        return value


class LearningRate(click.FloatRange):
    """A finite learning rate above 0."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        rate = super().convert(value, param, ctx)
        # NaN passes every comparison of a range.
        if not math.isfinite(rate):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return rate


class ValSize(click.ParamType):
    """A number of training images that a stratified split can hold out."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from fashion.data import check_val_size

        size = click.INT.convert(value, param, ctx)
        try:
            check_val_size(size)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)
        return size


class Device(click.Choice):
    """A device that this machine has."""

    def __init__(self) -> None:
        super().__init__(["auto", "cpu", "cuda", "mps"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from fashion.engine import resolve_device
        from fashion.errors import DeviceError

        device = super().convert(value, param, ctx)
        try:
            resolve_device(device)
        except DeviceError as error:
            self.fail(f"{error}.", param, ctx)
        return device


class Kernels(click.Choice):
    """What computes the CNN; native only where this machine can compile it."""

    def __init__(self) -> None:
        super().__init__(["auto", "native", "torch"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from fashion import native

        kernels = super().convert(value, param, ctx)
        if kernels == "native":
            try:
                native.library()
            except native.KernelError as error:
                self.fail(f"{error}.", param, ctx)
        return kernels


def switch(name: str, **attributes: Any) -> Callable:
    """Declare an option that is true when given alone, and takes true or false from MLproject."""
    return click.option(
        name, type=bool, is_flag=False, flag_value=True, default=False, **attributes
    )


def names(name: str, *declarations: str, **attributes: Any) -> Callable:
    """Declare an option that takes names, repeated or separated by commas."""

    def split(_ctx: click.Context, _param: click.Parameter, values: tuple[str, ...]) -> list[str]:
        return [part.strip() for value in values for part in value.split(",") if part.strip()]

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
        help="Where the dataset is, or is put when it is missing. Default: FASHION_DATA_DIR, else"
        " the cache, else Debian's package.",
    )(command)


def training_options(command: Callable) -> Callable:
    """Add the options of a training run, all but the model."""
    options: list[Callable] = [
        click.option(
            "--epochs",
            type=click.IntRange(min=1),
            default=3,
            show_default=True,
            help="Passes over the training images.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=32,
            show_default=True,
            help="Images a step.",
        ),
        click.option(
            "--lr",
            type=LearningRate(),
            default=0.1,
            show_default=True,
            help="Learning rate of SGD.",
        ),
        click.option(
            "--hidden-units",
            type=click.IntRange(min=1, max=4096),
            default=10,
            show_default=True,
            help="Width of the hidden layer, or channels of the CNN.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(min=0, max=2**32 - 1),
            default=42,
            show_default=True,
            help="Seed of the weights and of the order of the images.",
        ),
        click.option(
            "--val-size",
            type=ValSize(),
            default=5000,
            show_default=True,
            help="Training images held out for validation; 0 is the lab's own protocol.",
        ),
        click.option(
            "--device",
            type=Device(),
            default="auto",
            show_default=True,
            help="Where to train; auto takes cuda, else mps, else cpu.",
        ),
        click.option(
            "--kernels",
            type=Kernels(),
            default="auto",
            show_default=True,
            help="What computes the CNN on a CPU: torch, with the lab's results bit for bit;"
            " native, several times faster; auto is native where it can be compiled.",
        ),
        data_dir_option,
        switch("--system-metrics", help="Log CPU, memory and network use too."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
