"""Load Fashion-MNIST as tensors, and split it.

Dataset: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms" (arXiv:1708.07747), in the version of 31 August 2017, which removed the
overlap of training and test images.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fashion.data.download import FILES, _read, locate
from fashion.settings.task import IMAGE_SHAPE, SPLIT_SEED, check_val_size


@dataclass(frozen=True)
class Subset:
    """Images and labels.

    Attributes:
        name: name in MLflow's dataset lineage.
        images: uint8, shape (N, 1, 28, 28), 0 (background) to 255.
        labels: int64, shape (N,), indices into `CLASSES`.
        digest: 32 hexadecimal digits that identify the images and their order, derived from the
            verified SHA-256 of the files and the parameters of the split.
    """

    name: str
    images: Tensor
    labels: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class FashionMNIST:
    """The verified dataset.

    Attributes:
        train: all 60,000 training images, in the order of the file.
        test: the 10,000 test images, in the order of the file.
        directory: the directory of the files.
    """

    train: Subset
    test: Subset
    directory: Path

    def split(self, val_size: int) -> tuple[Subset, Subset | None]:
        """Split the training images into a training set and a stratified validation set.

        Args:
            val_size: number of validation images; 0 is the lab's protocol, without validation.

        Returns:
            The training set and the validation set (None if `val_size` is 0), both in the order of
            the file. Equal `val_size` gives equal sets.

        Raises:
            SettingError: `val_size` is too small or too large for all classes in both sets.
        """
        check_val_size(val_size)
        if val_size == 0:
            return self.train, None
        # Imported here because it takes a second, and val_size=0 does not need it.
        from sklearn.model_selection import train_test_split

        train_rows, val_rows = train_test_split(
            range(len(self.train)),
            test_size=val_size,
            random_state=SPLIT_SEED,
            stratify=self.train.labels.numpy(),
        )
        key = f"val_size={val_size},seed={SPLIT_SEED}"
        return (
            _select(self.train, sorted(train_rows), "fashion-mnist-train", key),
            _select(self.train, sorted(val_rows), "fashion-mnist-validation", key),
        )


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 images of 0..255 to float32 in [0, 1], as torchvision's ToTensor does."""
    return images.to(torch.float32).div_(255)


def load_dataset(data_dir: str | Path | None = None) -> FashionMNIST:
    """Find, verify and read the dataset; download it if this machine does not have it.

    The directory is `data_dir`, else the environment variable FASHION_DATA_DIR, else the cache
    (`$XDG_CACHE_HOME/fashion-mnist`), else that of Debian's package if it is installed. Missing
    files are added to `data_dir` or the cache: copied from Debian's package if it is installed,
    else downloaded by torchvision, else by `apt-get download`.

    Args:
        data_dir: directory of the four IDX files, plain or gzipped.

    Raises:
        DataError: a file has the wrong checksum, the download failed, or the directory cannot be
            read or written.
    """
    directory = locate(data_dir)
    contents = {name: _read(directory, name) for name in FILES}
    return FashionMNIST(
        train=_subset("fashion-mnist-train", "train", contents),
        test=_subset("fashion-mnist-test", "t10k", contents),
        directory=directory,
    )


def _subset(name: str, prefix: str, contents: dict[str, bytearray]) -> Subset:
    images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    pixels = torch.frombuffer(
        contents[images], dtype=torch.uint8, offset=FILES[images].header
    ).view(-1, *IMAGE_SHAPE)
    classes = torch.frombuffer(contents[labels], dtype=torch.uint8, offset=FILES[labels].header)
    return Subset(name, pixels, classes.long(), _digest(FILES[images].sha256, FILES[labels].sha256))


def _select(subset: Subset, rows: list[int], name: str, key: str) -> Subset:
    index = torch.tensor(rows)
    return Subset(
        name, subset.images[index], subset.labels[index], _digest(subset.digest, name, key)
    )


def _digest(*parts: str) -> str:
    # MLflow's database stores at most 36 characters of a digest.
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
