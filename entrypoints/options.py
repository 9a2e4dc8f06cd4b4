"""What the commands share: option types, groups of options, and how errors are shown.

Nothing here imports torch or MLflow before a command has been given its options: `--help` and a
mistyped option answer at once.
"""

import math
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from fashion.errors import FashionError

if TYPE_CHECKING:
    from fashion.settings.experiment import Architecture, Recipe


CAN_WAIT = hasattr(signal, "setitimer")
"""Whether an interruption can wait: Windows has no timers."""

RETRY_INTERVAL = 0.01
"""Seconds after which an interruption that had to wait is tried again."""


class Command(click.Command):
    """A command that shows the user's mistakes as one line, and signals as exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        received: list[int] = []
        try:
            with _stoppable(received):
                return super().invoke(ctx)
        except FashionError as error:
            raise click.ClickException(str(error)) from error
        except KeyboardInterrupt:
            if not received:
                raise
            click.echo(f"Stopped by {signal.Signals(received[0]).name}", err=True)
            ctx.exit(128 + received[0])


@contextmanager
def _stoppable(received: list[int]) -> Iterator[None]:
    """Raise KeyboardInterrupt where a signal asks the process to end; once, so that it does.

    The signal is put into `received`: Ray raises another KeyboardInterrupt in the place of ours.
    What may not be left half done is finished first.
    """
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):  # Windows has none
        numbers.append(signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in taken:
            signal.signal(each, signal.SIG_IGN)
        received.append(number)
        interrupt(number, frame)

    def interrupt(_: int, frame: FrameType | None) -> None:
        if CAN_WAIT and _must_finish(frame):
            try_again()
        else:
            raise KeyboardInterrupt

    def try_again() -> None:
        # Only here: whoever else has set an alarm, as pytest's time limits, keeps it until then.
        if signal.SIGALRM not in taken:
            taken[signal.SIGALRM] = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, RETRY_INTERVAL)

    def retry_if_lost(lost: Any) -> None:
        # Where nobody can catch it, as in a callback of a weak reference, Python drops it.
        if CAN_WAIT and received and issubclass(lost.exc_type, KeyboardInterrupt):
            try_again()
        else:
            hook(lost)

    taken = {}
    if threading.current_thread() is threading.main_thread():  # signals are its alone to set
        # nohup and shells ignore signals on behalf of what runs in the background.
        taken = {
            number: handler
            for number in numbers
            if (handler := signal.getsignal(number)) != signal.SIG_IGN
        }
    for number in taken:
        signal.signal(number, stop)
    hook, sys.unraisablehook = sys.unraisablehook, retry_if_lost
    try:
        yield
    finally:
        if CAN_WAIT and received:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in taken.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook


def _must_finish(frame: FrameType | None) -> bool:
    """Tell whether what is at work in a frame would harm this very process if it were cut off.

    The import system may hold its lock, which other threads would wait for until the end. A
    transaction of SQLAlchemy's, left open, would lock SQLite's file: this process could not say any
    more how its run ended.
    """
    if frame is not None and _module(frame) == "importlib._bootstrap":
        return True
    while frame is not None:
        if "sqlalchemy" in _module(frame) or _module(frame).startswith("mlflow.store.db"):
            return True
        frame = frame.f_back
    return False


def _module(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "")


class ModelName(click.ParamType):
    """The name of a model that `fashion.models` can build."""

    name = "model"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from fashion.models.catalogue import MODELS, TORCHVISION, constructor

        try:
            constructor(value)
        except KeyError:
            known = f"{', '.join(MODELS)}, {TORCHVISION}NAME for a classifier of torchvision"
            self.fail(f"{value!r} is not one of {known}.", param, ctx)
        return value


class Finite(click.FloatRange):
    """A finite number in a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        # NaN passes every comparison of a range.
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class ValSize(click.ParamType):
    """A number of training images that a stratified split can hold out."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from fashion.settings.task import check_val_size

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
        from fashion.errors import DeviceError
        from fashion.training.build import resolve_device

        device = super().convert(value, param, ctx)
        try:
            resolve_device(device)
        except DeviceError as error:
            self.fail(f"{error}.", param, ctx)
        return device


class Kernels(click.Choice):
    """What trains the lab's models; native only where this machine can compile it."""

    def __init__(self) -> None:
        super().__init__(["auto", "native", "torch"])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from fashion.training.kernels.compile import KernelError, library

        kernels = super().convert(value, param, ctx)
        if kernels == "native":
            try:
                library()
            except KernelError as error:
                self.fail(f"{error}.", param, ctx)
        return kernels


class RunToResume(click.ParamType):
    """The id of a run, or "latest"."""

    name = "run"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from fashion.tracking.checkpoint import RUN_ID

        if value not in ("", "latest") and not RUN_ID.fullmatch(value):
            self.fail(f"{value!r} is neither the id of a run nor latest.", param, ctx)
        return value


class Weights(click.ParamType):
    """A file of weights, or a word for none or for the default ones."""

    name = "file"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value not in ("", "default") and not Path(value).is_file():
            self.fail(f"there is no file {value}.", param, ctx)
        return value


def split_names(text: str) -> list[str]:
    """Return the names in a text that separates them by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


class Augmentations(click.ParamType):
    """Names of augmentations, separated by commas."""

    name = "names"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        from fashion.training.augmentation import AUGMENTATIONS

        chosen = tuple(split_names(value))
        for name in chosen:
            if name not in AUGMENTATIONS:
                self.fail(f"{name!r} is not one of {', '.join(AUGMENTATIONS)}.", param, ctx)
        return chosen


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
        help="Where the dataset is, or is put when it is missing. Default: FASHION_DATA_DIR, else"
        " the cache, else Debian's package.",
    )(command)


def configuration(
    models: Sequence[str], val_size: int, settings: dict[str, Any]
) -> "tuple[Architecture, Recipe]":
    """Return the network and the recipe that these options ask for.

    Args:
        models: names of what shall be trained.
        val_size: number of images held out for validation.
        settings: options by name; those that are fields of neither are passed over.

    Raises:
        click.UsageError: two of them contradict each other, or a model lacks an option.
    """
    from fashion.models.catalogue import options_of
    from fashion.settings.experiment import Architecture, Recipe

    def only(kind: type) -> dict[str, Any]:
        return {f.name: settings[f.name] for f in fields(kind) if f.name in settings}

    try:
        architecture, recipe = Architecture(**only(Architecture)), Recipe(**only(Recipe))
        for model in models:
            options_of(model, architecture)
        if recipe.patience and not val_size:
            raise ValueError("patience needs validation data: val_size is 0")
    except ValueError as error:
        raise click.UsageError(f"{error}.") from error
    return architecture, recipe


def training_options(command: Callable) -> Callable:
    """Add the options of a training run: the fields of `Architecture` and `Recipe`, and others."""
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
            type=Finite(min=0, min_open=True),
            default=0.1,
            show_default=True,
            help="Greatest learning rate.",
        ),
        click.option(
            "--optimizer",
            type=click.Choice(["sgd", "adam", "adamw", "muon"]),
            default="sgd",
            show_default=True,
            help="What takes the steps.",
        ),
        click.option(
            "--momentum",
            type=Finite(0, 1, max_open=True),
            default=0.0,
            show_default=True,
            help="Of SGD.",
        ),
        switch("--nesterov", help="Look ahead along the momentum."),
        click.option(
            "--weight-decay",
            type=Finite(0, 1),
            default=0.0,
            show_default=True,
            help="Pull of the weights to zero.",
        ),
        click.option(
            "--schedule",
            type=click.Choice(["constant", "cosine", "one-cycle"]),
            default="constant",
            show_default=True,
            help="What becomes of the learning rate.",
        ),
        click.option(
            "--warmup-epochs",
            type=Finite(min=0),
            default=0.0,
            show_default=True,
            help="Epochs, or parts of one, in which the learning rate rises.",
        ),
        click.option(
            "--label-smoothing",
            type=Finite(0, 1, max_open=True),
            default=0.0,
            show_default=True,
            help="Probability spread evenly over all classes in the training loss.",
        ),
        click.option(
            "--clip-norm",
            type=Finite(min=0),
            default=0.0,
            show_default=True,
            help="Greatest norm of the gradient; 0 does not clip.",
        ),
        click.option(
            "--ema-decay",
            type=Finite(0, 1, max_open=True),
            default=0.0,
            show_default=True,
            help="Average the weights with this decay a step; 0 does not.",
        ),
        click.option(
            "--patience",
            type=click.IntRange(min=0),
            default=0,
            show_default=True,
            help="Stop after so many epochs without a lower validation loss, and keep the best; 0"
            " trains on.",
        ),
        click.option(
            "--augment",
            type=Augmentations(),
            default="",
            metavar="NAMES",
            help="How training images are changed at random, in this order, separated by commas:"
            " flip, shift, erase.",
        ),
        click.option(
            "--mixup",
            type=Finite(min=0),
            default=0.0,
            show_default=True,
            help="How much images are mixed, two at a time: parameter of a Beta distribution.",
        ),
        click.option(
            "--precision",
            type=click.Choice(["float32", "bfloat16"]),
            default="float32",
            show_default=True,
            help="What products are computed in.",
        ),
        click.option(
            "--hidden-units",
            type=click.IntRange(min=1, max=4096),
            default=10,
            show_default=True,
            help="Width of the hidden layer, or channels of the CNN.",
        ),
        click.option(
            "--blocks",
            type=click.IntRange(min=1, max=4),
            default=2,
            show_default=True,
            help="Blocks of the CNN, or of each stage of the residual network.",
        ),
        click.option(
            "--dropout",
            type=Finite(0, 1, max_open=True),
            default=0.0,
            show_default=True,
            help="Probability that the CNN's classifier misses a feature in training.",
        ),
        switch("--batch-norm", help="Normalise after each convolution of the CNN."),
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
            help="What trains the lab's models on a CPU: torch, with the lab's results bit for bit;"
            " native, several times faster; auto is native where it can be compiled.",
        ),
        data_dir_option,
        switch("--system-metrics", help="Log CPU, memory and network use too."),
    ]
    for option in reversed(options):
        command = option(command)
    return command
