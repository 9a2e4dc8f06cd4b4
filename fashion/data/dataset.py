"""Fashion-MNIST: find it, verify it, hand it out as tensors.

Dataset: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms" (arXiv:1708.07747), in the state of 31 August 2017, when the overlap
of training and test images was removed.
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
    """Images with their labels.

    Attributes:
        name: what the subset is called in MLflow's dataset lineage.
        images: uint8, shape (N, 1, 28, 28), 0 (background) to 255.
        labels: int64, shape (N,), indices into `CLASSES`.
        digest: 32 hexadecimal digits that name these very images in this very order. They are
            derived from the verified SHA-256 of the files and the split, not from a new pass
            over the pixels.
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
        directory: where the files were read.
    """

    train: Subset
    test: Subset
    directory: Path

    def split(self, val_size: int) -> tuple[Subset, Subset | None]:
        """Hold a stratified validation set out of the training images.

        Args:
            val_size: number of images held out; 0 holds out none (the lab's own protocol).

        Returns:
            The remaining training set and the validation set (None when `val_size` is 0), each in
            the order of the file. The same `val_size` always gives the same two sets.

        Raises:
            SettingError: a split of this size leaves a class out of one of the two sets.
        """
        check_val_size(val_size)
        if val_size == 0:
            return self.train, None
        # Imported here because scikit-learn takes a second to load and val_size=0 needs none of it.
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
    """Find, verify and read the dataset; download it when this machine has none.

    Looked at in order: `data_dir`, else the environment variable FASHION_DATA_DIR, else the cache
    (`$XDG_CACHE_HOME/fashion-mnist`), else Debian's package where it is installed. Files that are
    missing are put into `data_dir` or the cache: from Debian's installed package, else by
    torchvision's download, else by `apt-get download`.

    Args:
        data_dir: directory with the four IDX files, plain or gzipped; filled if they are missing.

    Raises:
        DataError: a file's content is not Fashion-MNIST's, no source could be reached, or the
            directory cannot be read or written.
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
    # MLflow's database holds at most 36 characters of a digest.
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
