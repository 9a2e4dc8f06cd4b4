"""Declare an option once, as a field of a settings class, and derive the rest from it.

    label_smoothing: float = option(0.0, "Probability spread ...", min=0, max=1, max_open=True)

The command line, MLproject, search spaces and the parsing of MLflow's parameters all use the
default, help text and bounds of the field.
"""

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass
from functools import cached_property
from typing import Any, get_origin, get_type_hints

import click

from fashion.errors import SettingError

_KEY = "option"
LARGEST_INTEGER = 2**31 - 1


class Finite(click.FloatRange):
    """A finite number in a range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = super().convert(value, param, ctx)
        # NaN passes the range check.
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Integer(click.IntRange):
    """An integer in a range, at most `LARGEST_INTEGER` unless the range has a maximum."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = super().convert(value, param, ctx)
        if self.max is None and number > LARGEST_INTEGER:
            self.fail(f"{value} is greater than {LARGEST_INTEGER:,}.", param, ctx)
        return number


class Names(click.ParamType):
    """Names from a given set, in any order, separated by commas."""

    name = "names"

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        chosen = split_names(value) if isinstance(value, str) else tuple(value)
        for name in chosen:
            if name not in self.known:
                self.fail(f"{name!r} is not one of {', '.join(self.known)}.", param, ctx)
        return chosen


def split_names(text: str) -> tuple[str, ...]:
    """Split a text of names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


@dataclass(frozen=True)
class Option:
    """Declaration of an option.

    Attributes:
        help: one sentence for the command line; empty for a `fact`.
        min, max: bounds of a number.
        min_open, max_open: whether the bound itself is excluded.
        choices: allowed values of a string, or allowed names of a tuple.
        metavar: placeholder for the value in the command line's help.
        preset: whether presets may set it.
        decides: whether runs with different values are different experiments, rather than
            repetitions of one.
        tag: whether it is logged as a tag of the run, rather than as a parameter.
        also_called: other names, by which people look for it.
        name, kind, default: name, type and default of the field.
    """

    help: str = ""
    min: float | None = None
    max: float | None = None
    min_open: bool = False
    max_open: bool = False
    choices: tuple[str, ...] = ()
    metavar: str | None = None
    preset: bool = True
    decides: bool = True
    tag: bool = False
    also_called: tuple[str, ...] = ()
    name: str = ""
    kind: type = str
    default: Any = None

    @cached_property
    def type(self) -> click.ParamType:
        """Click type that parses and checks values of the option."""
        bounds = {"min_open": self.min_open, "max_open": self.max_open}
        if self.kind is bool:
            return click.BOOL
        if self.kind is int:
            low, high = (None if each is None else int(each) for each in (self.min, self.max))
            return Integer(low, high)
        if self.kind is float:
            return Finite(self.min, self.max, **bounds)
        if self.kind is tuple:
            return Names(self.choices)
        return click.Choice(self.choices) if self.choices else click.STRING

    def parse(self, value: Any) -> Any:
        """Convert a value, given as text or from YAML, to the type of the field.

        Raises:
            SettingError: the value has the wrong type or is out of bounds.
        """
        text = value if isinstance(value, tuple | list) else str(value)
        try:
            return self.type.convert(text, None, None)
        except click.BadParameter as error:
            raise SettingError(error.message.rstrip("."), self.name) from error


def option(default: Any, help: str, **declared: Any) -> Any:  # noqa: A002
    """Declare a field of a settings class; see `Option`."""
    return field(default=default, metadata={_KEY: Option(help, **declared)})


def fact(**declared: Any) -> Any:
    """Declare a field that is detected and logged, but cannot be set."""
    return field(metadata={_KEY: Option(preset=False, **declared)})


def options_of(settings: type) -> dict[str, Option]:
    """Return the options of a settings class by name, including nested settings."""
    found: dict[str, Option] = {}
    kinds = get_type_hints(settings)
    for each in fields(settings):
        kind = kinds[each.name]
        if is_dataclass(kind):
            found |= options_of(kind)  # type: ignore[arg-type]
        elif _KEY in each.metadata:
            found[each.name] = _named(each, kind)
    return found


def _named(each: Field, kind: Any) -> Option:
    declared = {
        name: getattr(each.metadata[_KEY], name)
        for name in Option.__dataclass_fields__
        if name not in ("name", "kind", "default")
    }
    return Option(**declared, name=each.name, kind=get_origin(kind) or kind, default=each.default)


def as_typed(value: Any) -> str:
    """Return the value of an option as the command line takes it."""
    if isinstance(value, list | tuple):
        return ",".join(value)
    # str of a float reads back as the same number.
    return str(value).lower() if isinstance(value, bool) else str(value)


def read(settings: type, values: Mapping[str, Any]) -> Any:
    """Build settings from values by option name; missing ones get their defaults.

    Raises:
        SettingError: a value is wrong, or two contradict each other.
    """
    given: dict[str, Any] = {}
    kinds = get_type_hints(settings)
    declared = options_of(settings)
    for each in fields(settings):
        if is_dataclass(kinds[each.name]):
            given[each.name] = read(kinds[each.name], values)
        elif each.name in values:
            given[each.name] = declared[each.name].parse(values[each.name])
    return settings(**given)


def flatten(settings: Any) -> dict[str, Any]:
    """Return the values of settings by option name; tuples of names are joined by commas."""
    values: dict[str, Any] = {}
    for each in fields(settings):
        value = getattr(settings, each.name)
        if is_dataclass(value):
            values |= flatten(value)
        else:
            values[each.name] = ",".join(value) if isinstance(value, tuple) else value
    return values
