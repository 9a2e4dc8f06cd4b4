"""Train and evaluate a classifier. Knows tensors and models; knows nothing of MLflow."""

import math
import time
from collections.abc import Iterator, Mapping
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

# Training images are gathered at least this many at a time.
GATHERED_IMAGES = 1024


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave.

    Attributes:
        number: 1 for the first epoch.
        loss: mean cross-entropy over the samples, each measured just before the step it took part
            in, in nats.
        accuracy: fraction of samples classified correctly, measured likewise.
        seconds: wall time of the pass, the device synchronised before and after.
        validation: what the model gave on the validation set after it, if there is one.
        state: what `train` can continue from in another process: tensors, numbers, and lists and
            dictionaries of them. Its tensors are those of the training: valid until it continues.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float
    validation: Evaluation | None
    state: dict[str, Any] = field(repr=False, compare=False)

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured, by the names it is logged under."""
        measured = {"train_loss": self.loss, "train_accuracy": self.accuracy}
        if self.validation is not None:
            measured |= {"val_loss": self.validation.loss, "val_accuracy": self.validation.accuracy}
        return measured

    def summary(self) -> dict[str, Any]:
        """Return what to remember of the epoch: metrics, seconds, and when, in ms since 1970."""
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
    """Train `model` in place, yielding after each epoch.

    At each yield and at the end the model is ready for evaluation: in evaluation mode, its weights
    the averaged ones where the recipe averages them, and at the end the best where it stops early.

    The model's device is where training happens. On a CPU and with PyTorch's kernels the lab's
    recipe gives, bit for bit, what the lab's loop over a shuffled DataLoader gives.

    Processes that torchrun started train together: each takes its share of each batch, so that
    they give what one gives, within rounding, where neither batch normalisation nor chance looks
    at a share by itself. The first of them alone evaluates; what is measured counts there.

    Args:
        model: maps float32 images (N, 1, 28, 28) to logits (N, 10).
        data: the training images.
        recipe: how to train.
        validation: what to evaluate after each epoch; early stopping needs it.
        state: of an earlier epoch, to continue from: on a CPU the rest gives the same bits as it
            would have without a break.

    Raises:
        KernelError: as for `kernels.choose`.
    """
    device = next(model.parameters()).device
    images, labels = data.images.to(device), data.labels.to(device)
    steps_per_epoch = math.ceil(len(data) / recipe.batch_size)
    training = TrainingState(model, recipe, steps_per_epoch)
    if state is not None:
        training.load_state_dict(state)
    # The orders before are drawn once more: those after follow from them.
    orders = islice(shuffled_orders(len(data), recipe.seed), training.epoch, None)

    while not training.is_over():
        training.begin_epoch()
        number = training.epoch
        order = next(orders).to(device)
        start = _clock(device)
        order, batch_size = _share(order, recipe.batch_size)
        targets = labels[order]
        batches = zip(_batches(images, order, batch_size), targets.split(batch_size), strict=True)
        # disable=None: no bar where the output is not a terminal.
        progress = tqdm(
            batches, f"epoch {number}/{recipe.epochs}", steps_per_epoch, leave=False, disable=None
        )
        # What a model draws itself, for dropout, follows from the seed too.
        with torch.random.fork_rng():
            torch.manual_seed((distributed.rank() << 48) + (recipe.seed << 16) + number)
            logits = training.steps.run(progress)
        # Measured once an epoch: reading a loss after each step would make the host wait for it.
        loss, accuracy = _measure(logits, targets)
        seconds = _clock(device) - start
        training.end_epoch()

        measured = None
        if validation is not None:
            if distributed.rank() == 0:
                measured = evaluate(model, validation, training.steps.kernels.forward)
            # One answer for all: processes that disagreed on when to stop would wait for ever.
            val_loss = distributed.share(measured and measured.loss)
            training.stopping.observe(number, val_loss, model)
        yield Epoch(number, loss, accuracy, seconds, measured, training.state_dict())
    training.finish()


def _share(order: Tensor, batch_size: int) -> tuple[Tensor, int]:
    """Return this process's rows of each batch, and how many those are of a whole batch.

    Every share has as many rows as any other, or one less, and never none: of a last batch with
    less rows than processes, some rows go to several.
    """
    workers, rank = distributed.world_size(), distributed.rank()
    if workers == 1:
        return order, batch_size
    shares = []
    for batch in order.split(batch_size):
        mine = batch[rank::workers]
        shares.append(mine if len(mine) else batch[rank % len(batch)].unsqueeze(0))
    return torch.cat(shares), len(shares[0])


def _measure(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Return mean loss in nats and accuracy over the samples of all processes."""
    loss = F.cross_entropy(logits.double(), targets, reduction="sum")
    right = (logits.argmax(dim=1) == targets).double().sum()
    count = torch.full_like(right, len(targets))
    loss, right, count = distributed.total(torch.stack([loss, right, count]))
    return (loss / count).item(), (right / count).item()


def _batches(images: Tensor, order: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yield uint8 images in `order` as float32 batches.

    Many batches are gathered and scaled at once, few enough to stay in a CPU's cache.
    """
    for rows in order.split(math.ceil(GATHERED_IMAGES / batch_size) * batch_size):
        yield from to_float(images.index_select(0, rows)).split(batch_size)


def shuffled_orders(size: int, seed: int) -> Iterator[Tensor]:
    """Yield, epoch after epoch, the order in which the lab visits `size` samples (int64).

    The lab seeds torch's global generator, then draws from it through two DataLoaders: each pass
    over the shuffled training loader draws a base seed for worker processes (which it has none of)
    and a seed for the permutation; each evaluation pass, one an epoch, draws a base seed too.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw() -> int:
        return int(torch.empty((), dtype=torch.int64).random_(generator=generator).item())

    while True:
        draw()
        yield torch.randperm(size, generator=torch.Generator().manual_seed(draw()))
        draw()


def _clock(device: torch.device) -> float:
    """Return the time in seconds once the device has finished what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
