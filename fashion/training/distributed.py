"""Processes that train one model together: started by torchrun, or by `launch` as torchrun would.

What is asked of a single process costs no import of torch.distributed.
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
    """Tell whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def world_size() -> int:
    """Return how many processes train together."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def rank() -> int:
    """Return which of them this is; the first, 0, alone evaluates, prints, and logs."""
    return int(os.environ["RANK"]) if is_launched() else 0


def launch(nproc: int, module: str, arguments: Sequence[str]) -> int:
    """Run `python -m module arguments` in `nproc` processes of this machine.

    They share its cores. What the first of them prints is shown, and signals reach all.

    Returns:
        The exit code: 0, that of the first process that failed, or 128 + the signal's number.
    """
    import sys

    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The processes say themselves what is wrong. Each of these loggers has a level of its own.
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
def joined(device: torch.device) -> Iterator[None]:
    """Join the other processes, with NCCL where training is on GPUs, each on its own, else gloo."""
    if not is_launched():
        yield
        return
    import torch.distributed as dist

    if device.type == "cuda":
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise DistributedError(
                f"process {local_rank} has no GPU of its own: this machine has"
                f" {torch.cuda.device_count()}"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def data_parallel(model: nn.Module) -> nn.Module:
    """Return what computes as `model` and averages gradients over the processes.

    Buffers, such as the statistics of a batch normalisation, are those of the first process.
    """
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(model)


def share(content: Any) -> Any:
    """Return the first process's `content` in all of them."""
    if world_size() == 1:
        return content
    import torch.distributed as dist

    contents = [content]
    dist.broadcast_object_list(contents, src=0)
    return contents[0]


def gather(content: Any) -> list[Any]:
    """Return the `content` of every process, in the order of their ranks."""
    if world_size() == 1:
        return [content]
    import torch.distributed as dist

    contents: list[Any] = [None] * world_size()
    dist.all_gather_object(contents, content)
    return contents


def total(values: Tensor) -> Tensor:
    """Return the sum of all processes' `values`."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.all_reduce(values)
    return values
