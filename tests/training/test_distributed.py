"""Several processes train what one would."""

import os
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
from tests.conftest import free_port
from tests.processes import Process
from tests.training.launched import CASES, train


@pytest.fixture(scope="module")
def by_three(tmp_path_factory: pytest.TempPathFactory, dataset: Dataset) -> tuple[Any, Any]:
    """By three processes: losses and weights of all cases; what each has drawn."""
    folder = tmp_path_factory.mktemp("launched")
    port = free_port()
    # As torchrun starts them; test_several_processes.py has that.
    processes = [
        Process(
            "tests.training.launched",
            str(folder / "found.pt"),
            cwd=folder,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "TORCHELASTIC_RUN_ID": "test",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "WORLD_SIZE": "3",
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
        )
        for rank in range(3)
    ]
    try:
        for process in processes:
            output = process.communicate()
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_three_processes_give_what_one_gives(
    by_three: tuple[Any, Any], dataset: Dataset, number: int
) -> None:
    losses, weights = train(dataset, *CASES[number])
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
