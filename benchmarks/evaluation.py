"""Time the evaluation of 10,000 images, and the logging of models."""

import json
import statistics
import subprocess
import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks import lab
from benchmarks.timing import interleave, medians, table
from fashion.data.sources import load_dataset
from fashion.models import catalogue
from fashion.settings.experiment import Recipe
from fashion.training.evaluation import evaluate
from fashion.training.kernels.choose import choose


def evaluation(repetitions: int) -> tuple[str, dict]:
    """Time the evaluation of the test set, the lab's and ours."""
    dataset = load_dataset()
    loader = lab.dataloaders(dataset)[1]
    contenders = {}
    for name in ("baseline", "cnn"):
        model = catalogue.build(name, seed=42).eval()
        contenders[f"{name}: lab"] = lambda model=model: _by_lab(model, loader)
        contenders[f"{name}: fashion"] = lambda model=model: evaluate(
            model, dataset.test, choose(model, Recipe()).forward
        )
        contenders[f"{name}: fashion, kernels=torch"] = lambda model=model: evaluate(
            model, dataset.test
        )
    seconds = interleave(contenders, repetitions)
    middle = medians(seconds)
    rows: list[list[object]] = [
        [name, f"{value:.3f}", f"{middle[name.split(':')[0] + ': lab'] / value:.1f}"]
        for name, value in middle.items()
    ]
    text = table(["evaluating 10,000 images", "seconds", "times the lab's speed"], rows)
    return text, {"seconds": seconds}


@torch.inference_mode()
def _by_lab(model: nn.Module, loader: DataLoader) -> float:
    return sum((model(x).argmax(dim=1) == y).float().mean().item() for x, y in loader)


def model_logging(repetitions: int) -> tuple[str, dict]:
    """Time the logging of the first model in a process, and of further ones."""
    command = [sys.executable, "-m", "benchmarks.log_model", str(repetitions + 1)]
    runs: list[list[float]] = []
    for _ in range(repetitions):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    first = statistics.median(run[0] for run in runs)
    further = statistics.median(seconds for run in runs for seconds in run[1:])
    rows: list[list[object]] = [["first", f"{first:.2f}"], ["further", f"{further:.2f}"]]
    return table(["logging the CNN", "seconds"], rows), {"seconds": runs}
