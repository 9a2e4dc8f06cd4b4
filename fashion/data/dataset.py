"""Labelled images as tensors, and their split into training and validation."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fashion.data.splitting import SplitError, hold_out
from fashion.errors import SettingError
from fashion.settings.task import FASHION_MNIST, SPLIT_SEED, Task

# Held out for validation where nobody says how many: at most so many images, and at most a tenth.
USUAL_VAL_SIZE = 5000


@dataclass(frozen=True)
class Subset:
    """Images and labels.

    Attributes:
        name: name in MLflow's dataset lineage.
        pixels: uint8, shape (M, channels, height, width), 0 (background) to 255; may be mapped from
            a file that is larger than memory.
        labels: int64, shape (N,), indices into the task's classes.
        digest: 32 hexadecimal digits that identify the images and their order, derived from the
            verified SHA-256 of the files and the parameters of the split.
        task: the classes and the shape.
        rows: int64, shape (N,): which of `pixels` these are; None for all of them.
        source: where the images come from: a URL, or a folder.
    """

    name: str
    pixels: Tensor
    labels: Tensor
    digest: str
    task: Task = FASHION_MNIST
    rows: Tensor | None = None
    source: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def images(self) -> Tensor:
        """All images in memory: uint8, shape (N, channels, height, width)."""
        return self.pixels if self.rows is None else self.pixels[self.rows]

    def take(self, index: Tensor) -> Tensor:
        """Return the images at these places: uint8, shape (len(index), channels, height, width)."""
        return self.pixels.index_select(0, index if self.rows is None else self.rows[index])

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, at most `size` at a time."""
        if self.rows is None:
            yield from self.pixels.split(size)
        else:
            yield from (self.pixels[rows] for rows in self.rows.split(size))

    def on(self, device: torch.device) -> "Subset":
        """Return the subset with images and labels on a device; chosen rows stay where they are.

        These belong to images that may not fit into the device's memory.
        """
        labels = self.labels.to(device)
        if self.rows is not None:
            return replace(self, labels=labels)
        return replace(self, pixels=self.pixels.to(device), labels=labels)


@dataclass(frozen=True)
class Dataset:
    """Verified data of one task.

    Attributes:
        train: all training images, in a fixed order.
        test: the test images, in a fixed order.
        directory: where the files are.
        validation: images that the data itself sets apart for validation; None if it does not.
        groups: int64, shape (N,): the group of each training image; a split keeps the images of a
            group together. None without groups.
    """

    train: Subset
    test: Subset
    directory: Path
    validation: Subset | None = None
    groups: Tensor | None = None

    @property
    def task(self) -> Task:
        return self.train.task

    @property
    def usual_val_size(self) -> int:
        """Number of validation images where nobody asks for another."""
        if self.validation is not None:
            return len(self.validation)
        tenth = max(len(self.train) // 10, len(self.task.classes))
        return min(USUAL_VAL_SIZE, tenth)

    def split(self, val_size: int) -> tuple[Subset, Subset | None]:
        """Split the training images into a training set and a stratified validation set.

        Args:
            val_size: number of validation images; 0 is the lab's protocol, without validation. With
                `groups` it is approximate, as each stays whole.

        Returns:
            The training set and the validation set (None if `val_size` is 0), both in the order of
            the data. Equal `val_size` gives equal sets.

        Raises:
            SettingError: `val_size` is too small or too large for all classes in both sets, the
                data has validation images of its own, which are another number, or a class is in
                one group only.
        """
        self.check_val_size(val_size)
        if val_size == 0:
            return self.train, None
        if self.validation is not None:
            return self.train, self.validation
        train_rows, val_rows = self._rows(val_size)
        key = f"val_size={val_size},seed={SPLIT_SEED}"
        return (
            select(self.train, sorted(train_rows), f"{self.task.name}-train", key),
            select(self.train, sorted(val_rows), f"{self.task.name}-validation", key),
        )

    def _rows(self, val_size: int) -> tuple[list[int], list[int]]:
        """Return which training images remain, and which are held out."""
        labels = self.train.labels.numpy()
        if self.groups is not None:
            groups = self.groups.tolist()
            order = np.random.default_rng(SPLIT_SEED).permutation(max(groups) + 1).tolist()
            try:
                held = hold_out(labels.tolist(), groups, val_size, keep=1, order=order)
            except SplitError as error:
                raise SettingError(
                    f"all training images of {self.task.classes[error.label]} are in one group:"
                    " none can be held out",
                    "val_size",
                ) from error
            return np.setdiff1d(np.arange(len(labels)), held).tolist(), held
        # Imported here because it takes a second, and val_size=0 does not need it.
        from sklearn.model_selection import train_test_split

        return train_test_split(
            range(len(labels)), test_size=val_size, random_state=SPLIT_SEED, stratify=labels
        )

    def check_val_size(self, val_size: int) -> None:
        """Raise SettingError unless `split` can hold out `val_size` training images."""
        if self.validation is not None:
            if val_size not in (0, len(self.validation)):
                raise SettingError(
                    f"{self.task.title} has {len(self.validation)} validation images of its own:"
                    f" omit val_size {val_size}",
                    "val_size",
                )
            return
        least = len(self.task.classes)
        if val_size and not least <= val_size <= len(self.train) - least:
            raise SettingError(
                f"{val_size} is neither 0 nor between {least} and {len(self.train) - least}",
                "val_size",
            )


def to_float(images: Tensor) -> Tensor:
    """Scale uint8 images of 0..255 to float32 in [0, 1], as torchvision's ToTensor does."""
    return images.to(torch.float32).div_(255)


def select(subset: Subset, rows: list[int], name: str, key: str) -> Subset:
    """Return some images of a subset as one of its own; `key` says by which rule.

    Images that are mapped from a file stay there.
    """
    index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    chosen = replace(
        subset, name=name, labels=subset.labels[index], digest=digest_of(subset.digest, name, key)
    )
    if subset.rows is None:
        return replace(chosen, pixels=subset.pixels[index])
    return replace(chosen, rows=subset.rows[index])


def digest_of(*parts: str) -> str:
    """Return the 32 hexadecimal digits of a `Subset` that these texts describe."""
    # MLflow's database stores at most 36 characters of a digest.
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
