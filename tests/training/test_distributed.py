"""Several processes train what one would."""

import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from click.testing import CliRunner

from entrypoints.train import train as command_of_train
from fashion.data.dataset import Dataset
from fashion.models import catalogue
from fashion.settings.experiment import Architecture
from fashion.training import distributed
from fashion.training.distributed import DistributedError
from tests.conftest import HANG_SECONDS

# What both ways of training run: 332 images in batches of 33 and a last one of 2, of which the last
# of three processes has none. A second epoch shows what the last batch of the first has done.

TRAIN = """
import sys
import torch
from fashion.data.dataset import Subset
from fashion.data.dataset import to_float
from fashion.data.sources import load_dataset
from fashion.models import catalogue
from fashion.settings.experiment import Architecture, Recipe
from fashion.training import distributed, loop
from fashion.training.augmentation import Augmentation

def head(subset, size):
    return Subset(subset.name, subset.images[:size], subset.labels[:size], subset.digest)

def train(dataset, name, architecture, settings):
    model = catalogue.build(name, 7, Architecture(**architecture))
    recipe = Recipe(epochs=2, batch_size=33, kernels="torch", **settings)
    epochs = loop.train(model, head(dataset.train, 332), recipe, head(dataset.test, 100))
    losses = [(epoch.loss, epoch.accuracy) for epoch in epochs]
    return losses, model.state_dict()
"""
LAUNCHED = f"""{TRAIN}
def first_mask(dataset):
    masks = []
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 10), torch.nn.Dropout(0.5)
    )
    model[2].register_forward_hook(lambda _, inputs, output: masks.append(output == 0))
    list(loop.train(model, head(dataset.train, 63), Recipe(epochs=1, batch_size=63)))
    return masks[0]

with distributed.joined():
    dataset = load_dataset()
    found = [train(dataset, *case) for case in eval(sys.argv[1])]
    flip = Augmentation(["flip"], distributed.rank_seed(42))
    flipped = flip(to_float(dataset.train.images[:100]))
    random = distributed.gather((first_mask(dataset), flipped))
    if distributed.rank() == 0:
        torch.save((found, random), sys.argv[2])
"""
CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("baseline", {}, {"lr": 0.05}),
    ("cnn", {}, {"lr": 0.05, "momentum": 0.9, "freeze_epochs": 1}),
    ("cnn", {}, {"optimizer": "adamw", "lr": 0.001, "clip_norm": 1.0, "ema_decay": 0.9}),
    ("cnn", {}, {"optimizer": "muon", "lr": 0.005, "label_smoothing": 0.1, "patience": 1}),
]


@pytest.fixture(scope="module")
def by_three(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> tuple[Any, Any]:
    """By three processes of torchrun: losses and weights of all cases; what each has drawn."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "launched.py").write_text(LAUNCHED)
    subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"),
            *(str(folder / "launched.py"), repr(CASES), str(folder / "found.pt")),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        check=True,
        timeout=HANG_SECONDS,
    )
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_three_processes_give_what_one_gives(
    by_three: tuple[Any, Any], dataset: Dataset, number: int
) -> None:
    scope: dict[str, Any] = {}
    exec(TRAIN, scope)
    losses, weights = scope["train"](dataset, *CASES[number])
    their_losses, their_weights = by_three[0][number]
    # float32 sums in another order, over 22 steps.
    assert torch.allclose(torch.tensor(their_losses), torch.tensor(losses), rtol=1e-4, atol=1e-4)
    # Adaptive optimisers step as far where a gradient is next to nothing, and so mostly rounding.
    name, architecture, settings = CASES[number]
    tolerance = 1e-2 if "optimizer" in settings else 1e-3
    untrained = catalogue.build(name, 7, Architecture(**architecture)).state_dict()
    for key, tensor in weights.items():
        learnt = (tensor - untrained[key]).norm()
        assert (their_weights[key] - tensor).norm() < tolerance * learnt, key


def test_each_process_draws_random_numbers_of_its_own(by_three: tuple[Any, Any]) -> None:
    for (mask, augmented), (other_mask, otherwise_augmented) in combinations(by_three[1], 2):
        assert mask.shape == other_mask.shape == (21, 10)
        assert 0.3 < (mask == other_mask).float().mean() < 0.7
        assert not torch.equal(augmented, otherwise_augmented)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nproc", "0"], "--nproc"),
        (["--nproc", "4", "--batch-size", "3"], "batch_size 3 is less than nproc 4"),
        (["--nproc", "2", "--kernels", "native"], "native kernels support one process only"),
    ],
)
def test_what_cannot_be_shared_is_refused_before_there_are_processes(
    store: Path, arguments: list[str], message: str, request: pytest.FixtureRequest
) -> None:
    if "native" in arguments:
        request.getfixturevalue("native_kernels")
    result = CliRunner().invoke(command_of_train, ["--model", "cnn", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert mlflow.search_runs(output_format="list") == []


def test_each_process_has_its_gpu_and_one_without_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    distributed.use_own_gpu()  # a process by itself uses the first
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_RANK", "1")
    distributed.use_own_gpu()
    assert chosen == [1]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DistributedError, match="no GPU for process 2: this machine has only 2"):
        distributed.use_own_gpu()
