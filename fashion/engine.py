"""Train and evaluate a classifier. Knows tensors and models; knows nothing of MLflow."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fashion.data import Subset, to_float
from fashion.errors import DeviceError

# Evaluation keeps no gradients, so its batches are as large as stays in a CPU's cache.
EVAL_BATCH_SIZE = 500


@dataclass(frozen=True)
class Recipe:
    """What determines a training run, apart from the model and the data. Defaults are the lab's."""

    epochs: int = 3
    batch_size: int = 32
    lr: float = 0.1
    seed: int = 42


@dataclass(frozen=True)
class Epoch:
    """What one pass over the training images gave.

    Attributes:
        number: 1 for the first epoch.
        loss: mean cross-entropy over the samples, each measured just before the step it took part
            in, in nats.
        accuracy: fraction of samples classified correctly, measured likewise.
        seconds: wall time of the pass, the device synchronised before and after.
    """

    number: int
    loss: float
    accuracy: float
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """A model's answers on a subset.

    Attributes:
        loss: mean cross-entropy over the samples, in nats.
        accuracy: fraction of samples classified correctly.
        logits: float32, shape (N, 10), on the CPU.
    """

    loss: float
    accuracy: float
    logits: Tensor


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`; "auto" is the first present of cuda, mps and cpu.

    Raises:
        DeviceError: this machine has no such device.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device, available in present.items() if available)
    if not present[name]:
        available = ", ".join(device for device in present if present[device])
        raise DeviceError(f"no {name} device on this machine; it has: {available}")
    return torch.device(name)


def train(model: nn.Module, data: Subset, recipe: Recipe) -> Iterator[Epoch]:
    """Train `model` in place by plain SGD on the cross-entropy, yielding after each epoch.

    At each yield the model is in evaluation mode.

    The model's device is where training happens. On a CPU the result is, bit for bit, that of the
    lab's loop over a shuffled DataLoader seeded with `recipe.seed`.

    Args:
        model: maps float32 images (N, 1, 28, 28) to logits (N, 10).
        data: the training images.
        recipe: epochs, batch size, learning rate and seed.
    """
    device = next(model.parameters()).device
    images, labels = data.images.to(device), data.labels.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr)
    orders = shuffled_orders(len(data), recipe.seed)
    for number in range(1, recipe.epochs + 1):
        model.train()
        order = next(orders).to(device)
        # Sums stay on the device: reading one makes the host wait for the device.
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        start = _clock(device)
        batches = order.split(recipe.batch_size)
        # disable=None: no bar where the output is not a terminal.
        for rows in tqdm(batches, f"epoch {number}/{recipe.epochs}", leave=False, disable=None):
            targets = labels[rows]
            logits = model(to_float(images[rows]))
            loss = F.cross_entropy(logits, targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.detach() * len(rows)
            correct += (logits.argmax(dim=1) == targets).sum()
        seconds = _clock(device) - start
        model.eval()
        yield Epoch(number, loss_sum.item() / len(data), correct.item() / len(data), seconds)


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


def evaluate(model: nn.Module, data: Subset) -> Evaluation:
    """Measure `model`, which is in evaluation mode, on `data`."""
    logits = predict(model, data.images)
    return Evaluation(
        loss=F.cross_entropy(logits, data.labels).item(),
        accuracy=(logits.argmax(dim=1) == data.labels).double().mean().item(),
        logits=logits,
    )


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits (float32, shape (N, 10), on the CPU) of uint8 images (N, 1, 28, 28).

    The model, which is in evaluation mode, answers on the device it is on.
    """
    device = next(model.parameters()).device
    batches = images.split(EVAL_BATCH_SIZE)
    return torch.cat([model(to_float(batch.to(device))).cpu() for batch in batches])


def _clock(device: torch.device) -> float:
    """Return the time in seconds once the device has finished what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
