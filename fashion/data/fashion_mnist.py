"""Load Fashion-MNIST as tensors.

Dataset: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms" (arXiv:1708.07747), in the version of 31 August 2017, which removed the
overlap of training and test images.
"""

from pathlib import Path

import torch

from fashion.data.dataset import Dataset, Subset, digest_of
from fashion.data.download import FILES, locate, read
from fashion.settings.task import DOWNLOADS, FASHION_MNIST


def load(data_dir: str | Path | None = None) -> Dataset:
    """Find, verify and read the dataset; download it if this machine does not have it.

    The directory is `data_dir`, else the environment variable FASHION_DATA_DIR, else the cache
    (`$XDG_CACHE_HOME/fashion-mnist`), else that of Debian's package if it is installed. Missing
    files are added to `data_dir` or the cache: copied from Debian's package if it is installed,
    else downloaded by torchvision, else by `apt-get download`.

    Args:
        data_dir: directory of the four IDX files, plain or gzipped.

    Returns:
        60,000 training images and 10,000 test images, in the order of the files.

    Raises:
        DataError: a file has the wrong checksum, the download failed, or the directory cannot be
            read or written.
    """
    directory = locate(data_dir)
    contents = {name: read(directory, name) for name in FILES}
    return Dataset(
        train=_subset("fashion-mnist-train", "train", contents),
        test=_subset("fashion-mnist-test", "t10k", contents),
        directory=directory,
    )


def _subset(name: str, prefix: str, contents: dict[str, bytearray]) -> Subset:
    images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    pixels = torch.frombuffer(
        contents[images], dtype=torch.uint8, offset=FILES[images].header
    ).view(-1, *FASHION_MNIST.shape)
    classes = torch.frombuffer(contents[labels], dtype=torch.uint8, offset=FILES[labels].header)
    return Subset(
        name,
        pixels,
        classes.long(),
        digest_of(FILES[images].sha256, FILES[labels].sha256),
        source=f"{DOWNLOADS}/{images}.gz",
    )
