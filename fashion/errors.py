"""Errors whose message is shown to the user, and how to write what they name."""

from collections.abc import Sequence

# Of a list of names; more would hide what is said about them.
MOST_NAMES = 12


class FashionError(Exception):
    """An error that the user can fix. Its message is one actionable line."""


class SettingError(FashionError, ValueError):
    """An option has a wrong value, or contradicts another one.

    Attributes:
        problem: what is wrong.
        option: name of the option; empty if several options contradict each other.
    """

    def __init__(self, problem: str, option: str = "") -> None:
        super().__init__(f"{option}: {problem}" if option else problem)
        self.problem, self.option = problem, option


class DataError(FashionError):
    """The dataset is missing, damaged, or cannot be stored."""


class DeviceError(FashionError):
    """The requested device is not available on this machine."""


class ModelError(FashionError):
    """A network cannot be built as requested."""


class TrackingError(FashionError):
    """The tracking server or store cannot be used."""


class RegistryError(FashionError):
    """A stored model cannot be used, nothing can be registered, or an alias cannot be moved."""


def printable(text: str) -> str:
    """Escape line breaks and other characters that are not printable."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def some(names: Sequence[str]) -> str:
    """Return names as one text: all of at most `MOST_NAMES`, else the first and how many more."""
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    return f"{', '.join(names[: MOST_NAMES - 2])} and {len(names) - MOST_NAMES + 2} more"
