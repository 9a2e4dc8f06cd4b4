"""Errors whose message is meant for the person at the terminal."""


class FashionError(Exception):
    """A fault the user can mend. Its message is one actionable line."""


class DataError(FashionError):
    """The dataset is missing, damaged, or cannot be stored."""


class DeviceError(FashionError):
    """The requested device is not available on this machine."""


class ModelError(FashionError):
    """A network cannot be built as asked for."""


class TrackingError(FashionError):
    """The tracking server or store cannot be used."""
