"""Compare training on a folder of pictures with torchvision: uv run python -m benchmarks.folder

Fashion-MNIST is written as JPEGs of three colours in one folder for each class. A linear model is
then trained on them from the project's map of decoded pictures, and from torchvision's ImageFolder
by a DataLoader with two workers, each in a process of its own. Ten
minutes.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import click
import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import machine, table
from fashion.data.dataset import select, to_float
from fashion.data.sources import load_dataset
from tests.pictures import write_photographs

CONTENDERS = ("ImageFolder, 2 workers", "first run", "later run")
BATCH_SIZE, GATHERED = 32, 1024
# Seconds between measurements of memory.
INTERVAL = 0.05


def write_folder(folder: Path, pictures: int, size: int) -> None:
    """Write the first training images."""
    train = load_dataset().train
    write_photographs(folder, select(train, list(range(pictures)), "part", ""), size)


def from_image_folder(folder: Path, image_size: int) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Yield the batches of each epoch, as torchvision's tutorials do."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    steps = [transforms.Resize((image_size, image_size)), transforms.ToTensor()]
    data = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=2)
    while True:
        yield iter(loader)


def from_map(folder: Path, image_size: int) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Yield the batches of each epoch, as the training loop gathers them."""
    data = load_dataset(data=str(folder), image_size=image_size)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(data.train)).split(GATHERED):
            images = to_float(data.train.take(rows)).split(BATCH_SIZE)
            yield from zip(images, data.train.labels[rows].split(BATCH_SIZE), strict=True)

    while True:
        yield epoch()


def run(contender: str, folder: Path, image_size: int, epochs: int) -> list[tuple[int, float]]:
    """Train; return the number of pictures and the seconds of each epoch, with the preparation."""
    if contender == CONTENDERS[0]:
        import torchvision  # noqa: F401  so that its import is not measured

        source = from_image_folder
    else:
        source = from_map
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * image_size**2, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = []
    start = time.perf_counter()
    for _, batches in zip(range(epochs), source(folder, image_size), strict=False):
        seen = 0
        for images, labels in batches:
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            seen += len(labels)
        now = time.perf_counter()
        found.append((seen, now - start))
        start = now
    return found


def memory(process: psutil.Process) -> float:
    """Return the MiB of a process and its children, without pages of files.

    Pages of files the kernel may drop, and pages that processes share count once.
    """
    total = 0
    for each in (process, *process.children(recursive=True)):
        try:
            lines = Path(f"/proc/{each.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        sizes = dict(line.split()[:2] for line in lines[1:])
        total += int(sizes["Pss_Anon:"]) + int(sizes["Pss_Shmem:"])
    return total / 1024


def measure(
    contender: str, cache: str, *options: str, sample: bool = False
) -> tuple[float, float, float]:
    """Run a contender in a process of its own.

    Args:
        contender: one of `CONTENDERS`.
        cache: folder of the cache.
        options: of this module.
        sample: whether to measure memory, which slows the process down.

    Returns:
        Pictures per second of the first epoch and of the later ones, and peak memory in MiB.
    """
    command = [sys.executable, "-m", "benchmarks.folder", "--contender", contender, *options]
    environment = {**os.environ, "XDG_CACHE_HOME": cache}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, memory(psutil.Process(process.pid)) if sample else 0)
        time.sleep(INTERVAL)
    output, _ = process.communicate()
    if process.returncode:
        raise click.ClickException(f"{contender} failed")
    (seen, seconds), *later = json.loads(output)
    return seen / seconds, sum(n for n, _ in later) / sum(s for _, s in later), peak


@click.command()
@click.option("--pictures", default=10_000, show_default=True)
@click.option("--sizes", default="64,320", show_default=True, help="Of the files, in pixels.")
@click.option("--image-size", default=64, show_default=True, help="Of the images.")
@click.option("--epochs", default=3, show_default=True)
@click.option("--repetitions", default=3, show_default=True)
@click.option("--contender", type=click.Choice(CONTENDERS), hidden=True)
@click.option("--folder", type=Path, hidden=True)
def main(
    pictures: int,
    sizes: str,
    image_size: int,
    epochs: int,
    repetitions: int,
    contender: str,
    folder: Path,
) -> None:
    """Print pictures per second of the first and of later epochs, and peak memory."""
    if contender:
        click.echo(json.dumps(run(contender, folder, image_size, epochs)))
        return
    rows: list[list[object]] = []
    for size in map(int, sizes.split(",")):
        found: dict[str, list[tuple[float, float, float]]] = {each: [] for each in CONTENDERS}
        peaks = {}
        with tempfile.TemporaryDirectory() as temporary:
            write_folder(Path(temporary, "photos"), pictures, size)
            options = ["--folder", f"{temporary}/photos", "--image-size", str(image_size)]
            for repetition in range(repetitions):
                cache = f"{temporary}/{repetition}"
                for each in CONTENDERS:
                    found[each].append(measure(each, cache, *options, "--epochs", str(epochs)))
            for each in CONTENDERS:
                *_, peaks[each] = measure(each, f"{temporary}/memory", *options, sample=True)
        for each, measured in found.items():
            first, later, _ = (median(values) for values in zip(*measured, strict=True))
            figures = [f"{value:,.0f}" for value in (first, later, peaks[each])]
            rows.append([f"{size}x{size}: {each}", *figures])
    click.echo(", ".join(f"{name} {value}" for name, value in machine().items()))
    click.echo(f"{pictures:,} pictures, medians of {repetitions}\n")
    header = ["files", "first epoch, pictures/s", "later epochs, pictures/s", "peak MiB"]
    click.echo(table(header, rows))


if __name__ == "__main__":
    main()
