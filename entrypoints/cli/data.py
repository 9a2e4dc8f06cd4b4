"""The data that the options of a command name."""

from functools import cached_property
from typing import TYPE_CHECKING

from fashion.errors import SettingError
from fashion.settings.task import CHAMPION_URI, FASHION_MNIST

if TYPE_CHECKING:  # importing it takes seconds
    from fashion.data.dataset import Dataset


class Data:
    """Data that is read once, and only if it is needed.

    Args:
        data_dir, data, image_size, strict: of `data_options`.
    """

    def __init__(self, data_dir: str, data: str, image_size: int, strict: bool) -> None:
        self._name, self._options = data, (data_dir, data, image_size, strict)

    @cached_property
    def dataset(self) -> "Dataset":
        """The data, as for `load_dataset`."""
        from fashion.data.sources import load_dataset

        return load_dataset(*self._options)

    def check_index(self, index: int, option: str) -> None:
        """Raise SettingError unless there is a test image with this index."""
        last = len(self.dataset.test) - 1
        if index > last:
            raise SettingError(f"{index} is not within 0 to {last}", option)

    @property
    def champion_uri(self) -> str:
        """URI of the champion; that of Fashion-MNIST is known without reading the data."""
        is_usual = self._name == FASHION_MNIST.name
        return CHAMPION_URI if is_usual else self.dataset.task.champion_uri
