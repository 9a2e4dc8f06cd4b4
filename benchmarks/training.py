"""Time training with the lab's loop, PyTorch Lightning and ours, and the hardware's limit."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.contenders import EPOCHS, SEED, environment
from benchmarks.timing import interleave, medians, table
from fashion.data.dataset import Subset, to_float
from fashion.data.sources import load_dataset
from fashion.models import catalogue
from fashion.settings.experiment import Recipe
from fashion.training import evaluation, loop, steps

MODELS = ("baseline", "nonlinear", "cnn")
LOOPS = ("lab", "lightning", "fashion")
STEPS = EPOCHS * 60_000 // 32


@contextmanager
def environment_with_lightning() -> Iterator[str]:
    """Yield the path of a Python with Lightning, which MLflow imports wherever it is installed."""
    with tempfile.TemporaryDirectory() as environment:
        subprocess.run(
            ["uv", "sync", "--group", "bench"],
            env={**os.environ, "UV_PROJECT_ENVIRONMENT": environment},
            check=True,
            capture_output=True,
        )
        yield f"{environment}/bin/python"


def training(repetitions: int) -> tuple[str, dict]:
    """Time the contenders in turn, each in its own process."""
    results: dict[str, list[dict]] = {}
    with environment_with_lightning() as lightning:
        for _, name, loop in product(range(repetitions), MODELS, LOOPS):
            python = lightning if loop == "lightning" else sys.executable
            result = _contend(loop, name, SEED, python)
            results.setdefault(f"{name}: {loop}", []).append(result)
    rows = []
    for key, runs in results.items():
        lab = results[f"{key.split(':')[0]}: lab"]
        ratios = [ours["seconds"] for ours in lab], [run["seconds"] for run in runs]
        paired = [theirs / ours for theirs, ours in zip(*ratios, strict=True)]
        rows.append(
            [
                key,
                f"{statistics.median(ratios[1]):.2f}",
                f"{statistics.median(paired):.1f}",
                f"{min(paired):.1f} to {max(paired):.1f}",
                f"{runs[0]['test_accuracy']:.2%}",
                f"{max(run['peak_mib'] for run in runs):.0f}",
                f"{max(run['peak_mib'] - run['peak_mib_before'] for run in runs):.0f}",
            ]
        )
    header = [
        "model: loop",
        "seconds",
        "times the lab's speed",
        "range",
        "test accuracy",
        "peak MiB",
        "of which training",
    ]
    return table(header, rows), results


def _contend(contender: str, name: str, seed: int, python: str = sys.executable) -> dict:
    """Run a contender in its own process and return the printed result."""
    command = [python, "-m", "benchmarks.contenders", contender, name, str(seed)]
    env = environment(contender)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    result = json.loads(done.stdout.splitlines()[-1])
    print(
        f"{name}: {contender}: seed {seed}: {result['seconds']:.1f} s,"
        f" {result['test_accuracy']:.2%}",
        file=sys.stderr,
        flush=True,
    )
    return result


def presets(seeds: int, preset: str = "fast") -> tuple[str, dict]:
    """Train a preset and the lab's CNN in turn, over seeds."""
    contenders = {"the lab's loop, cnn": ("lab", "cnn"), f"preset={preset}": ("preset", preset)}
    results: dict[str, list[dict]] = {name: [] for name in contenders}
    for seed, name in product(range(SEED, SEED + seeds), contenders):
        results[name].append(_contend(*contenders[name], seed))
    rows: list[list[object]] = []
    for name, runs in results.items():
        seconds = f"{statistics.median(run['seconds'] for run in runs):.1f}"
        rows.append([name, seconds, *_spread([run["test_accuracy"] for run in runs])])
    return table(["", "seconds", "test accuracy", f"of each of {seeds} seeds"], rows), results


def _spread(accuracies: list[float]) -> list[str]:
    """Return mean and standard deviation, and each value, as cells of a table."""
    return [
        f"{statistics.mean(accuracies):.2%} ± {statistics.stdev(accuracies):.2%}",
        ", ".join(f"{accuracy:.2%}" for accuracy in accuracies),
    ]


def floor(repetitions: int) -> tuple[str, dict]:
    """Measure lower bounds: one batch in cache, bare convolutions, pure arithmetic."""
    dataset = load_dataset()
    images, targets = to_float(dataset.train.images[:32]), dataset.train.labels[:32]
    left, right = torch.rand(2, 2048, 2048)
    subset = Subset("32 images", dataset.train.images[:32], targets, "")
    contenders: dict[str, Callable[[], object]] = {"matrix product": lambda: left @ right}
    flops = {}
    for name in MODELS:
        model = catalogue.build(name, seed=SEED)
        with FlopCounterMode(display=False) as counter:
            F.cross_entropy(model(images), targets).backward()
        flops[name] = counter.get_total_flops()
        contenders[f"{name}: one batch in cache, autograd and SGD"] = _hundred_steps(
            model, images, targets
        )
        contenders[f"{name}: one batch in cache, ours"] = _ours_hundred_times(name, subset)
    for layout in (torch.contiguous_format, torch.channels_last):
        contenders[f"cnn: its four convolutions alone, {_name(layout)}"] = _convolutions(layout)
    seconds = interleave(contenders, repetitions)
    middle = medians(seconds)
    peak = 2 * 2048**3 / middle.pop("matrix product")
    rows: list[list[object]] = [
        [name, f"{value * 10:.3f}", f"{value / 100 * STEPS:.1f}"] for name, value in middle.items()
    ]
    rows += [
        [
            f"{name}: {flops[name] / 32e6:.2f} MFLOP an image at the peak",
            f"{flops[name] / peak * 1e3:.3f}",
            f"{flops[name] / peak * STEPS:.1f}",
        ]
        for name in MODELS
    ]
    text = table([f"peak {peak / 1e9:.0f} GFLOP/s", "ms a step", "seconds for 3 epochs"], rows)
    return text, {"seconds": seconds, "flops_a_step": flops, "peak_flops": peak}


def _hundred_steps(model: nn.Module, images: Tensor, targets: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def run() -> None:
        for _ in range(100):
            F.cross_entropy(model(images), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


def _ours_hundred_times(name: str, subset: Subset) -> Callable[[], None]:
    """Return a function that runs a hundred of our steps on one batch, without gathering it."""
    taken = steps.Steps(catalogue.build(name, seed=SEED), Recipe(lr=1e-6), subset)
    batch = to_float(subset.images), subset.labels

    def run() -> None:
        taken.run([batch] * 100, epoch=1)

    return run


def _convolutions(layout: torch.memory_format) -> Callable[[], None]:
    """Return a function that runs only the CNN's convolutions, forward and backward, 100 times."""
    layers = []
    for channels, size in ((1, 28), (10, 28), (10, 14), (10, 14)):
        conv = nn.Conv2d(channels, 10, 3, padding=1).to(memory_format=layout)
        x = torch.rand(32, channels, size, size).to(memory_format=layout)
        # The first layer's input needs no gradient.
        layers.append((conv, x.requires_grad_(channels > 1)))

    def run() -> None:
        for _ in range(100):
            for conv, x in layers:
                y = conv(x)
                y.backward(torch.ones_like(y))

    return run


def _name(layout: torch.memory_format) -> str:
    return str(layout).removeprefix("torch.")


def accuracy(seeds: int) -> tuple[str, dict]:
    """Compare the CNN's test accuracy with native kernels and with PyTorch's, over seeds."""
    dataset = load_dataset()
    found: dict[str, list[float]] = {"native": [], "torch": []}
    for seed, kernels in product(range(SEED, SEED + seeds), found):
        model = catalogue.build("cnn", seed=seed)
        list(loop.train(model, dataset.train, Recipe(EPOCHS, seed=seed, kernels=kernels)))
        found[kernels].append(evaluation.evaluate(model, dataset.test).accuracy)
        print(f"seed {seed}, {kernels}: {found[kernels][-1]:.2%}", file=sys.stderr, flush=True)
    rows: list[list[object]] = [[kernels, *_spread(values)] for kernels, values in found.items()]
    return table(["kernels", "test accuracy", f"of each of {seeds} seeds"], rows), found
