"""How many threads may compute here, and PyTorch's own threads."""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use, by its affinity (cpuset) and its cgroups' quotas.

    Args:
        root: the directory with `proc` and `sys`.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # only on Linux
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min([cores, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the quotas, in cores, of this process's cgroups and of those above them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = mount / path.lstrip("/")
        for folder in (group, *group.parents):
            if controllers:  # cgroup v1
                numbers = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
            else:
                numbers = _words(folder / "cpu.max")
            if len(numbers) == 2 and all(map(str.isdecimal, numbers)):  # else "max" or -1
                yield int(numbers[0]) / int(numbers[1])
            if folder == mount:
                break


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def limit_pytorch() -> None:
    """Let PyTorch's pool have no more threads than cores, unless OMP_NUM_THREADS says how many.

    OpenMP sees the affinity, but no quota: in a container with two cores of a host's 64 its threads
    would wait for each other most of the time.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))


@contextmanager
def pytorch_single_threaded() -> Iterator[None]:
    """Let PyTorch's operations run on the calling thread only.

    Beside kernels with threads of their own they are small, and PyTorch's threads would spin on the
    cores that the kernels' threads need.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
