"""Work on many files in several processes."""

import ctypes
import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.synchronize import BoundedSemaphore
from typing import TypeVar

from tqdm import tqdm

from fashion.errors import DataError
from fashion.portable import conversion

# Starting the processes takes as long as a few hundred small pictures.
FEW = 256
# Large pictures that are decoded at a time; each takes up to half a gigabyte.
LARGE_AT_ONCE = 2
_PR_SET_PDEATHSIG = 1

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_chunks(
    work: Callable[[Sequence[_Item]], _Result], items: Sequence[_Item], size: int, title: str
) -> Iterator[_Result]:
    """Yield the result of `work` on every `size` of the items, in their order.

    Processes rather than threads: of a small picture, most of the time is Python's. Only a few
    results are held at a time. A progress bar is shown on a terminal.

    Raises:
        DataError: a process was killed.
    """
    chunks = [items[start : start + size] for start in range(0, len(items), size)]
    # disable=None: no progress bar unless the output is a terminal.
    with tqdm(total=len(items), desc=title, unit=" pictures", leave=False, disable=None) as bar:
        results = map(work, chunks) if len(items) < FEW else _in_processes(work, chunks)
        for chunk, result in zip(chunks, results, strict=True):
            bar.update(len(chunk))
            yield result


def _in_processes(
    work: Callable[[Sequence[_Item]], _Result], chunks: Sequence[Sequence[_Item]]
) -> Iterator[_Result]:
    # As torch's DataLoader does: forked where that is safe, as starting anew imports torch.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    workers = _cores()
    pool = ProcessPoolExecutor(
        workers, context, _prepare, (os.getpid(), context.BoundedSemaphore(LARGE_AT_ONCE))
    )
    try:
        waiting = iter(chunks)
        futures: deque[Future[_Result]] = deque()
        for chunk in islice(waiting, 3 * workers):
            futures.append(pool.submit(work, chunk))
        while futures:
            yield futures.popleft().result()
            for chunk in islice(waiting, 1):
                futures.append(pool.submit(work, chunk))
    except BrokenProcessPool as error:
        raise DataError(
            "a process that decodes pictures was killed: the machine may lack memory"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _prepare(parent: int, large: BoundedSemaphore) -> None:
    """Leave signals to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        # Else a killed parent would leave them waiting for ever, each holding the others' pipes.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    conversion.share_turns(large)
