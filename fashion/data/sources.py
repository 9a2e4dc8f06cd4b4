"""Load the data that a setting names: Fashion-MNIST, another set, or a folder of pictures."""

from difflib import get_close_matches
from pathlib import Path

from fashion.data import fashion_mnist, folder, published
from fashion.data.dataset import Dataset
from fashion.errors import SettingError, printable
from fashion.files import expanded
from fashion.settings.experiment import Experiment
from fashion.settings.task import FASHION_MNIST


def names() -> tuple[str, ...]:
    """Return the names of data that are no folders."""
    return (FASHION_MNIST.name, *published.SETS)


def located(data: str) -> str:
    """Return a setting `data` that means the same in every folder: paths become absolute.

    Raises:
        SettingError: there is no such folder.
        files.FileError: a path begins with ~ and a user that does not exist.
    """
    return data if data in names() else str(_existing(data).absolute())


def load_dataset(
    data_dir: str | Path | None = None,
    data: str = FASHION_MNIST.name,
    image_size: int = 0,
    strict: bool = False,
) -> Dataset:
    """Load data, verified.

    Args:
        data_dir: directory of downloaded sets; see `fashion_mnist.load`.
        data: one of `names()`, or the path of a folder of pictures or of a CSV file, see
            `listing.find`. A folder with one of these names is ./NAME.
        image_size: height and width of the images in pixels; 0 for those of the data.
        strict: refuse a folder with pictures that cannot be read, instead of leaving them out.

    Raises:
        DataError: it cannot be read.
        SettingError: there is no such data, or it has images of another size.
        files.FileError: a path begins with ~ and a user that does not exist.
    """
    if data not in names():
        # Models are registered under the name of the task.
        taken = {FASHION_MNIST.model_name, *(name.replace(":", "-") for name in names())}
        return folder.load(_existing(data), image_size, strict, taken)
    known = FASHION_MNIST if data == FASHION_MNIST.name else published.SETS[data]
    size = known.shape[-1]
    if image_size not in (0, size):
        raise SettingError(f"the images of {data} are of {size}x{size} pixels", "image_size")
    if data == FASHION_MNIST.name:
        return fashion_mnist.load(data_dir)
    return published.load(data, data_dir)


def load_for(asked: Experiment, data_dir: str | Path | None = None) -> Dataset:
    """Load the data of an experiment; see `load_dataset`."""
    return load_dataset(data_dir, asked.data, asked.image_size, asked.strict)


def _existing(data: str) -> Path:
    shown = printable(data)
    if "\0" in data or not data.strip():
        raise SettingError(f"{shown or repr(data)} is not the path of a folder", "data")
    path = expanded(data)
    try:
        path.stat()
    except FileNotFoundError:
        hint = "" if "/" in data else f"; {_advice(data)}"
        raise SettingError(f"there is no folder {shown}{hint}", "data") from None
    except OSError as error:
        raise SettingError(f"cannot read {shown}: {error.strerror}", "data") from error
    return path


def _advice(data: str) -> str:
    parts = [name for name in names() if name.startswith(f"{data}:")]
    close = parts or get_close_matches(data.lower(), names(), n=1)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"sets by name are {', '.join(names())}"
