"""Compile the C kernels on first use with the machine's compiler, and cache the result."""

import ctypes
import functools
import hashlib
import os
import shlex
import subprocess
from pathlib import Path

import torch
from torch import nn

from fashion.errors import FashionError
from fashion.files import FileError, cache_dir, replacing

SOURCES = [Path(__file__).with_name(name) for name in ("conv3x3.c", "mlp.c")]


class KernelError(FashionError):
    """The kernels cannot be compiled or loaded on this machine."""


def takes(model: nn.Module) -> bool:
    """Return whether the kernels support the model's parameters: float32, on the CPU."""
    return all(p.is_cpu and p.dtype == torch.float32 for p in model.parameters())


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels, cached by source, compiler and flags.

    The compiler is the environment variable CC, else cc: GCC or Clang, with OpenMP.

    Raises:
        KernelError: the compiler is missing or fails, or the cache cannot be written.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    flags = ["-O2", "-fPIC", "-shared", "-fopenmp"]
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        flags += ["-mavx2", "-mfma"]
    sources = b"".join(source.read_bytes() for source in SOURCES)
    key = hashlib.sha256(" ".join([*compiler, *flags]).encode() + sources).hexdigest()
    path = cache_dir() / "kernels" / f"fashion-{key[:16]}.so"
    try:
        if not path.exists():
            with replacing(path) as file:
                _run([*compiler, *flags, "-o", str(file), *map(str, SOURCES), "-lm"])
        kernels = ctypes.CDLL(str(path))
    except (OSError, FileError, KernelError) as error:
        reason = str(error).splitlines()[0]
        raise KernelError(
            f"the native kernels cannot be compiled ({reason}): install a C compiler with OpenMP,"
            " or train with --kernels torch"
        ) from error
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    kernels.conv_forward.argtypes = [pointer] * 5 + [integer] * 5
    kernels.conv_backward.argtypes = [pointer] * 8 + [integer] * 5
    kernels.mlp_step.argtypes = [pointer] * 3 + [integer] * 2 + [pointer] * 4 + [ctypes.c_float]
    for function in (kernels.conv_forward, kernels.conv_backward, kernels.mlp_step):
        function.restype = None
    return kernels


def _run(command: list[str]) -> None:
    """Run the compiler; if it fails, raise KernelError with its error text."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise KernelError(done.stderr.strip() or f"{command[0]} failed")
