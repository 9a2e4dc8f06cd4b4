"""Find Fashion-MNIST on this machine, or download and verify it."""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fashion.errors import DataError
from fashion.files import INCOMING, cache_dir, expanded

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
DEBIAN_PACKAGE = "dataset-fashion-mnist"


class _File(NamedTuple):
    """An uncompressed IDX file: size and header size in bytes, and SHA-256."""

    size: int
    header: int
    sha256: str


FILES = {
    "train-images-idx3-ubyte": _File(
        47_040_016, 16, "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte": _File(
        60_008, 8, "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": _File(
        7_840_016, 16, "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte": _File(
        10_008, 8, "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}


def locate(data_dir: str | Path | None = None) -> Path:
    """Return the directory of the four files, after adding missing ones.

    For arguments and sources see `fashion_mnist.load`.

    Raises:
        DataError: the download failed, or the directory cannot be read or written.
        files.FileError: it begins with ~ and a user that does not exist.
    """
    chosen = directory_of(data_dir)
    directory = chosen or cache_dir()
    if _missing(directory):
        if not chosen and not _missing(DEBIAN_DIR):
            return DEBIAN_DIR
        _fill(directory)
    return directory


def directory_of(data_dir: str | Path | None = None) -> Path | None:
    """Return the existing directory of downloaded sets that was chosen, None if none was.

    Raises:
        DataError: it does not exist.
        files.FileError: it begins with ~ and a user that does not exist.
    """
    chosen = data_dir or os.environ.get("FASHION_DATA_DIR")
    if not chosen:
        return None
    directory = expanded(str(chosen))
    if not directory.is_dir():
        raise DataError(f"the data directory {directory} does not exist: create it, or correct it")
    return directory


def _path(directory: Path, name: str) -> Path | None:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    return None


def _missing(directory: Path) -> list[str]:
    try:
        return [name for name in FILES if _path(directory, name) is None]
    except OSError as error:
        raise DataError(f"cannot read the data directory {directory}: {error.strerror}") from error


def read(directory: Path, name: str) -> bytearray:
    """Return the verified content of one file, decompressed."""
    path = _path(directory, name)
    if path is None:
        raise DataError(f"{directory / name} disappeared while it was being read")
    expected = FILES[name]
    opener: Callable = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            # One byte more than expected is enough to detect a file that is too long, and limits
            # the memory that a malicious gzip file can allocate.
            content = bytearray(file.read(expected.size + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or unreadable ({error}): {_REMEDY}") from error
    if len(content) < expected.size:
        raise DataError(
            f"{path} is truncated: {len(content):,} of {expected.size:,} bytes: {_REMEDY}"
        )
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        raise DataError(f"{path} is not Fashion-MNIST's {name} (wrong SHA-256): {_REMEDY}")
    return content


_REMEDY = "delete it to download it again"


def _fill(directory: Path) -> None:
    """Add the missing files to `directory`, each atomically.

    Each file is verified, then renamed within one file system: other processes never see a partial
    file, and concurrent downloads write the same content.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=INCOMING) as incoming:
            source = _fetch(Path(incoming))
            for name in _missing(directory):
                verified = Path(incoming, f"{name}.verified")
                verified.write_bytes(read(source, name))
                verified.replace(directory / name)
    except OSError as error:
        raise DataError(
            f"cannot store the dataset in {directory}: {error.strerror or error}; "
            "choose a writable directory with --data-dir"
        ) from error


def _fetch(incoming: Path) -> Path:
    """Return a directory with all four files, from the first source that works."""
    if not _missing(DEBIAN_DIR):
        return DEBIAN_DIR
    failures = []
    for fetch in (_download_with_torchvision, _download_with_apt):
        try:
            return fetch(incoming)
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            failures.append(str(error).strip().splitlines()[-1] if str(error) else repr(error))
    raise DataError(
        f"Fashion-MNIST is not on this machine and could not be downloaded ({'; '.join(failures)}):"
        " check the network, or pass the directory of its four files as --data-dir"
    )


def _download_with_torchvision(incoming: Path) -> Path:
    from torchvision.datasets import FashionMNIST as TorchvisionFashionMNIST

    print("Downloading Fashion-MNIST (31 MB) with torchvision", file=sys.stderr)
    return Path(TorchvisionFashionMNIST(incoming, download=True).raw_folder)


def _download_with_apt(incoming: Path) -> Path:
    """Download and unpack Debian's package; needs no root and installs nothing."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise FileNotFoundError("apt-get, to download Debian's package, is not installed")
    print(f"Downloading Debian's package {DEBIAN_PACKAGE} (31 MB)", file=sys.stderr)
    # The system's package lists may be missing or outdated, and only root can update them: use
    # separate lists beside the download.
    lists, cache = incoming / "lists", incoming / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    apt = ["apt-get", "-q", f"-oDir::State::Lists={lists}", f"-oDir::Cache={cache}"]
    if os.geteuid() == 0:
        # As root, apt would download as the user _apt, which cannot write here.
        apt.append("-oAPT::Sandbox::User=root")
    _run([*apt, "update"], incoming)
    _run([*apt, "download", DEBIAN_PACKAGE], incoming)
    packages = list(incoming.glob(f"{DEBIAN_PACKAGE}_*.deb"))
    if not packages:
        raise FileNotFoundError(f"apt-get downloaded no {DEBIAN_PACKAGE}")
    _run(["dpkg-deb", "-x", str(packages[0]), str(incoming)], incoming)
    return incoming / DEBIAN_DIR.relative_to("/")


def _run(command: list[str], directory: Path) -> None:
    """Run a command with its output on stderr; if it fails, raise OSError with its error text."""
    done = subprocess.run(
        command, cwd=directory, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, timeout=600
    )
    if done.returncode:
        raise OSError(f"{command[0]}: {done.stderr.strip() or done.returncode}")
