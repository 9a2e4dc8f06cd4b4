"""Data-parallel training in several processes, started by torchrun or by `launch`.

torch.distributed is imported only if there are several processes.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fashion.errors import FashionError


class DistributedError(FashionError):
    """The processes cannot be started."""


def is_launched() -> bool:
    """Return whether this process was started by torchrun or `launch`."""
    return os.environ.keys() >= {"TORCHELASTIC_RUN_ID", "RANK", "LOCAL_RANK", "WORLD_SIZE"}


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def rank() -> int:
    """Return the rank of this process; only rank 0 evaluates, prints and logs."""
    return int(os.environ["RANK"]) if is_launched() else 0


def rank_seed(seed: int) -> int:
    """Return the seed of this process for draws that must differ between processes.

    Torch's CPU generator reads only the lower 32 bits of a seed, so what is above them, and the
    rank, is spread over them by the golden ratio. On rank 0 a seed below 2**32 stays as it is.
    """
    return (seed + ((seed >> 32) + rank()) * 0x9E3779B9) % 2**32


def launch(nproc: int, module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module arguments` in `nproc` processes on this machine.

    They share its cores. Only the output of rank 0 is shown; signals are passed on to all.

    Returns:
        The exit code: 0, that of the first failed process, or 128 + the signal number.
    """
    import sys

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes print their errors themselves. Each of these loggers has its own level.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=nproc,
        run_id=module,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull, local_ranks_filter={0}),
    )
    try:
        elastic_launch(config, sys.executable)("-m", module, *arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stopped:
        return 128 + stopped.sigval
    return 0


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group: NCCL for what is on GPUs, gloo for the rest.

    Both, where there are GPUs, as a resumed run decides on its device later.
    """
    if not is_launched():
        yield
        return
    import torch.distributed as dist

    both = torch.cuda.is_available() and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if both else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def use_own_gpu() -> None:
    """Make the GPU of this process's rank on this machine the one that "cuda" means.

    Raises:
        DistributedError: there are more processes than GPUs.
    """
    if not is_launched():
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if local_rank >= torch.cuda.device_count():
        raise DistributedError(
            f"there is no GPU for process {local_rank}: this machine has only"
            f" {torch.cuda.device_count()}"
        )
    torch.cuda.set_device(local_rank)


def data_parallel(model: nn.Module) -> nn.Module:
    """Wrap `model` so that gradients are averaged over the processes.

    Buffers, such as batch normalisation statistics, are broadcast from rank 0.
    """
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model)


def share(content: Any) -> Any:
    """Broadcast `content` from rank 0 to all processes."""
    if world_size() == 1:
        return content
    import torch.distributed as dist

    contents = [content]
    dist.broadcast_object_list(contents, src=0)
    return contents[0]


def gather(content: Any) -> list[Any]:
    """Return the `content` of all processes, by rank."""
    if world_size() == 1:
        return [content]
    import torch.distributed as dist

    contents: list[Any] = [None] * world_size()
    dist.all_gather_object(contents, content)
    return contents


def total(values: Tensor) -> Tensor:
    """Return the sum of `values` over all processes."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values
