"""The training loop: works on tensors and models, independently of MLflow."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fashion.data.dataset import Subset, to_float
from fashion.settings.experiment import Recipe
from fashion.training import distributed
from fashion.training.evaluation import Evaluation, evaluate
from fashion.training.state import TrainingState

# Minimum number of training images to gather at a time.
GATHERED_IMAGES = 1024


@dataclass(frozen=True)
class Epoch:
    """Results of one epoch.

    Attributes:
        number: number of the epoch, from 1.
        loss: mean cross-entropy over the training images in nats, each measured just before the
            optimisation step that uses it.
        accuracy: fraction of training images classified correctly, measured likewise.
        seconds: wall time of the training pass, with the device synchronised.
        validation: evaluation on the validation set after the epoch, if there is one.
        state: state from which `train` can continue in another process: tensors, numbers, and
            lists and dictionaries of them. Its tensors are not copies: valid until the next epoch.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float
    validation: Evaluation | None
    state: dict[str, Any] = field(repr=False, compare=False)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics by the names under which they are logged."""
        measured = {"train_loss": self.loss, "train_accuracy": self.accuracy}
        if self.validation is not None:
            measured |= self.validation.metrics("val")
        return measured

    def summary(self) -> dict[str, Any]:
        """Return metrics, seconds, and the time of the epoch's end in ms since 1970."""
        return {
            "metrics": self.metrics,
            "seconds": self.seconds,
            "timestamp": time.time_ns() // 1_000_000,
        }


def train(
    model: nn.Module,
    data: Subset,
    recipe: Recipe,
    validation: Subset | None = None,
    state: Mapping[str, Any] | None = None,
) -> Iterator[Epoch]:
    """Train `model` in place on its device, yielding after each epoch.

    At each yield and at the end the model is in evaluation mode. Its weights are the averaged ones
    if the recipe averages them, and at the end the best ones if it uses early stopping.

    On a CPU with PyTorch's kernels, the lab's recipe gives the same weights, bit for bit, as the
    lab's loop over a shuffled DataLoader.

    Under torchrun, each process trains on its share of each batch. A share is empty if the batch
    has fewer rows than there are processes. The result equals that of a single process within
    rounding, except for batch normalisation and random operations, which see only one share. Only
    rank 0 evaluates.

    Args:
        model: maps float32 images (N, channels, height, width) to logits (N, classes).
        data: the training images.
        recipe: how to train.
        validation: images to evaluate after each epoch; required for early stopping.
        state: state of an earlier epoch to continue from; on a CPU the result equals that of an
            uninterrupted training, bit for bit.

    Raises:
        KernelError: as for `kernels.choose`.
    """
    device = next(model.parameters()).device
    data = data.on(device)
    steps_per_epoch = math.ceil(len(data) / recipe.batch_size)
    training = TrainingState(model, recipe, data)
    if state is not None:
        training.load_state_dict(state)
    # Skip the orders of earlier epochs, which advances the random generator.
    orders = islice(shuffled_orders(len(data), recipe.seed), training.epoch, None)

    while not training.is_over():
        training.begin_epoch()
        number = training.epoch
        order = next(orders).to(device)
        start = _clock(device)
        order, sizes = _share(order, recipe.batch_size)
        targets = data.labels[order]
        batches = zip(_batches(data, order, sizes), targets.split(sizes), strict=True)
        # disable=None: no progress bar unless the output is a terminal.
        progress = tqdm(
            batches, f"epoch {number}/{recipe.epochs}", steps_per_epoch, leave=False, disable=None
        )
        # Seed the random numbers of dropout and mixup.
        with torch.random.fork_rng():
            torch.manual_seed(distributed.rank_seed((recipe.seed << 16) + number))
            logits = training.steps.run(progress, number)
        # Once per epoch: reading the loss after each step would synchronise the device each time.
        loss, accuracy = _measure(logits, targets)
        seconds = _clock(device) - start
        training.end_epoch()

        measured = None
        if validation is not None:
            if distributed.rank() == 0:
                with training.steps.kernels.computing():
                    measured = evaluate(model, validation, training.steps.kernels.forward)
            # All processes must agree on when to stop, or they would deadlock.
            val_loss = distributed.share(measured and measured.loss)
            training.stopping.observe(number, val_loss, model)
        yield Epoch(number, loss, accuracy, seconds, measured, training.state_dict())
    training.finish()


def _share(order: Tensor, batch_size: int) -> tuple[Tensor, list[int]]:
    """Return this process's rows of all batches in `order`, and how many it has of each batch.

    Each row belongs to one process. Shares of a batch differ by at most one row.
    """
    workers, rank = distributed.world_size(), distributed.rank()
    size = len(order)
    place_in_batch = torch.arange(size, device=order.device) % batch_size
    ends = (min(batch_size, size - start) for start in range(0, size, batch_size))
    return order[place_in_batch % workers == rank], [len(range(rank, end, workers)) for end in ends]


def _measure(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return mean loss in nats and accuracy over the samples of all processes."""
    loss = F.cross_entropy(logits.double(), targets, reduction="sum")
    right = (logits.argmax(dim=1) == targets).double().sum()
    count = torch.full_like(right, len(targets))
    loss, right, count = distributed.total(torch.stack([loss, right, count]))
    return (loss / count).item(), (right / count).item()


def _batches(data: Subset, order: Tensor, sizes: Sequence[int]) -> Iterator[Tensor]:
    """Yield images in `order` as float32 batches of these sizes, on the device of `order`.

    Several batches are gathered and scaled at once, but not more than fit in a CPU's cache.
    """
    at_once = math.ceil(GATHERED_IMAGES / max(1, *sizes))
    for start in range(0, len(sizes), at_once):
        gathered = sizes[start : start + at_once]
        rows, order = order.tensor_split([sum(gathered)])
        yield from to_float(data.take(rows).to(rows.device)).split(gathered)


def shuffled_orders(size: int, seed: int) -> Iterator[Tensor]:
    """Yield for each epoch the order in which the lab visits `size` samples (int64).

    The lab seeds torch's global generator, from which two DataLoaders draw: each pass over the
    shuffled training loader draws a base seed for worker processes (unused) and a seed for the
    permutation; the evaluation pass after each epoch draws a base seed too.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> int:
        return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())

    while True:
        draw()
        yield torch.randperm(size, generator=torch.Generator().manual_seed(draw()))
        draw()


def _clock(device: torch.device) -> float:
    """Return the time in seconds, after the device has finished its queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
