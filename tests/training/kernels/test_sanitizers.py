"""The native kernels for each kind of processor, with the compiler's address and
undefined-behaviour sanitizers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.kernels import test_random_shapes

CAPABILITIES = ("default", "avx2", "avx512")
# Under the sanitizers a step takes seconds.
FEW_SHAPES = [
    f"{test_random_shapes.__file__}::{test.__name__}[{seed}]"
    for test in (
        test_random_shapes.test_a_step_of_the_cnn,
        test_random_shapes.test_a_step_by_autograd_of_the_cnns_features,
        test_random_shapes.test_a_step_of_linear_layers,
    )
    for seed in range(2)
]


@pytest.mark.slow(seconds=90)
@pytest.mark.usefixtures("native_kernels")
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_no_access_out_of_bounds(capability: str, tmp_path: Path) -> None:
    own = torch.backends.cpu.get_cpu_capability().lower()
    if capability != "default" and own not in CAPABILITIES[CAPABILITIES.index(capability) :]:
        pytest.skip(f"{own} has no {capability}")
    compiler = os.environ.get("CC", "cc")
    # The sanitizer's functions must be loaded before all others, and C++'s before they are found.
    libraries = [
        subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if not all(map(os.path.isabs, libraries)):
        pytest.skip(f"{compiler} has no address sanitizer")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-q", *FEW_SHAPES],
        env=os.environ
        | {
            "ATEN_CPU_CAPABILITY": capability,
            "CC": f"{compiler} -g1 -fsanitize=address,undefined -fno-sanitize-recover=all",
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
            "XDG_CACHE_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(tmp_path.rglob("*.so"))
