"""The search space and the options of a sweep.

A space is a YAML file that gives each option of `train` a value, a list of values or a range.
"""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from math import nan
from pathlib import Path
from typing import Any

import click

from fashion.errors import FashionError, SettingError
from fashion.settings import document
from fashion.settings.experiment import OPTIONS
from fashion.settings.metrics import DEFAULT_METRIC, VALIDATION_METRICS
from fashion.settings.option import Finite, option, options_of

SEARCHES = ("random", "grid", "optuna")


@dataclass(frozen=True)
class Plan:
    """How to search.

    Attributes:
        epochs: epochs of a trial that is not stopped early.
    """

    epochs: int
    search: str = option(
        "random",
        "Search algorithm: grid tries all combinations, optuna learns from earlier trials.",
        choices=SEARCHES,
    )
    metric: str = option(DEFAULT_METRIC, "Metric to compare trials by.", choices=VALIDATION_METRICS)
    trials: int = option(20, "Number of trials of random and optuna.", min=1)
    grace_epochs: int = option(
        1,
        "Epochs that each trial runs before ASHA may stop it early; 0 disables ASHA.",
        min=0,
    )
    cpus_per_trial: int = option(1, "CPU cores and threads per trial.", min=1)
    gpus_per_trial: float = option(0.0, "GPUs per trial; may be a fraction.", min=0)
    retries: int = option(
        3, "Number of times a failed trial is resumed from its last epoch.", min=0
    )
    seed: int = option(
        42,
        "Seed of the search algorithm; the training seed is an option of the space.",
        min=0,
        max=2**32 - 1,
    )


PLAN_OPTIONS = options_of(Plan)

Value = str | int | float | bool


class SpaceError(FashionError):
    """The file is not a valid search space."""


@dataclass(frozen=True)
class Range:
    """Uniform distribution from `low` to `high`, of the logarithm if `log`."""

    low: float
    high: float
    log: bool


# What is searched of an option: one of the choices, or a number of the range.
Searched = list[Value] | Range


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        dimensions: by option: a fixed value, a list of choices, or a range.
        text: content of the file it was read from.
    """

    dimensions: dict[str, Value | Searched]
    text: str

    @property
    def searched(self) -> dict[str, Searched]:
        """The options that are not fixed."""
        return {
            name: value
            for name, value in self.dimensions.items()
            if isinstance(value, list | Range)
        }

    def corners(self) -> Iterator[dict[str, Value]]:
        """Yield each combination of choices and ends of ranges."""
        for chosen in product(*map(_ends, self.dimensions.values())):
            yield dict(zip(self.dimensions, chosen, strict=True))


def _ends(value: Value | list[Value] | Range) -> list[Value]:
    if isinstance(value, Range):
        return [value.low, value.high]
    return value if isinstance(value, list) else [value]


def read(path: Path) -> Space:
    """Read a search space.

    Raises:
        DocumentError: the file cannot be read, or is not YAML.
        SpaceError: it is not a search space.
    """
    return parse(document.read(path), str(path))


def parse(text: str, source: str) -> Space:
    """Parse a search space; `source` is the file name for error messages.

    Raises:
        DocumentError, SpaceError: `text` is not a search space.
    """
    named = document.parse(text, source)
    dimensions = {name: _dimension(source, name, value) for name, value in named.items()}
    space = Space(dimensions, text)
    if not space.searched:
        raise SpaceError(f"{source}: all options are fixed, nothing to search")
    return space


def _dimension(source: str, name: str, value: Any) -> Value | Searched:
    if isinstance(value, Value):
        return _typed(name, value)
    if isinstance(value, list) and value and all(isinstance(item, Value) for item in value):
        return [_typed(name, item) for item in value]
    if isinstance(value, dict) and len(value) == 1:
        ((kind, ends),) = value.items()
        if kind in ("uniform", "loguniform") and isinstance(ends, list) and len(ends) == 2:
            low, high = map(_number, ends)
            if low < high and (kind == "uniform" or low > 0):
                return Range(low, high, kind == "loguniform")
    raise SpaceError(
        f"{source}: {name} must be a value, a list of values, {{uniform: [low, high]}} or"
        " {loguniform: [low, high]}"
    )


def _typed(name: str, value: Value) -> Value:
    """Return a number as one, even if YAML has read it as text, as YAML 1.1 does with 1e-3."""
    option = OPTIONS.get(name)
    if isinstance(value, str) and option is not None and option.kind in (int, float):
        with suppress(SettingError):  # `Experiment.from_options` will say what is wrong
            return option.parse(value)
    return value


def _number(end: Any) -> float:
    """Return an end of a range, which YAML may have read as text; NaN if it is no finite number."""
    if isinstance(end, str | int | float) and not isinstance(end, bool):
        with suppress(click.BadParameter):
            return Finite().convert(str(end), None, None)
    return nan
