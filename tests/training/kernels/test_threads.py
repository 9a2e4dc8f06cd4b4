"""How many threads compute."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fashion.data.dataset import Dataset
from fashion.models import catalogue
from fashion.settings.experiment import Recipe
from fashion.training import loop
from fashion.training.kernels.threads import limit_pytorch, usable_cores
from tests.conftest import head

V2 = {"proc/self/cgroup": "0::/user/me\n"}
V1 = {"proc/self/cgroup": "2:cpuacct,cpu:/me\n1:name=systemd:/me\n"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], Path]:
    """Eight cores, and the files of a kernel."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        (V2, 8),
        (V2 | {"sys/fs/cgroup/user/me/cpu.max": "max 100000\n"}, 8),
        (V2 | {"sys/fs/cgroup/user/me/cpu.max": "150000 100000\n"}, 2),
        (V2 | {"sys/fs/cgroup/user/me/cpu.max": "20000 100000\n"}, 1),
        (V2 | {"sys/fs/cgroup/user/cpu.max": "300000 100000\n"}, 3),
        (V2 | {"sys/fs/cgroup/cpu.max": "6400000 100000\n"}, 8),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/me/cpu.cfs_quota_us": "200000\n",
                "sys/fs/cgroup/cpu/me/cpu.cfs_period_us": "100000\n",
            },
            2,
        ),
        (
            V1
            | {
                "sys/fs/cgroup/cpu/me/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/me/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_a_quota_counts_as_cores(
    machine: Callable[[dict[str, str]], Path], files: dict[str, str], cores: int
) -> None:
    assert usable_cores(machine(files)) == cores


def test_pytorch_gets_the_cores_that_there_are_or_what_the_user_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr("fashion.training.kernels.threads.usable_cores", lambda: 2)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        limit_pytorch()
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS")
        limit_pytorch()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("native_kernels")
def test_training_leaves_pytorchs_threads_as_they_were(small: Dataset) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        model = catalogue.build("cnn", seed=42)
        for _ in loop.train(model, head(small.train, 64), Recipe(epochs=1), head(small.test, 64)):
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "1000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, "None"),
    ],
)
def test_pytorchs_threads_spin_shortly_unless_the_user_says_otherwise(
    variables: dict[str, str], expected: str
) -> None:
    ours = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}
    env = {name: value for name, value in os.environ.items() if name not in ours} | variables
    code = "import os, fashion; print(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == expected
