"""Errors whose message is meant for the person at the terminal."""


class FashionError(Exception):
    """A fault the user can mend. Its message is one actionable line."""


class SettingError(FashionError, ValueError):
    """An option has a wrong value, or contradicts another one.

    Attributes:
        problem: what is wrong.
        option: the name of the option; empty where the problem is one of several together.
    """

    def __init__(self, problem: str, option: str = "") -> None:
        super().__init__(f"{option}: {problem}" if option else problem)
        self.problem, self.option = problem, option


class DataError(FashionError):
    """The dataset is missing, damaged, or cannot be stored."""


class DeviceError(FashionError):
    """The requested device is not available on this machine."""


class ModelError(FashionError):
    """A network cannot be built as asked for."""


class TrackingError(FashionError):
    """The tracking server or store cannot be used."""


def printable(text: str) -> str:
    """Return the text in one line, with escapes where a character would garble a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
