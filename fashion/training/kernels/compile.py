"""Compile the C kernels on first use with the machine's compiler, and cache the result."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import nn

from fashion.errors import FashionError
from fashion.files import FileError, cache_dir, replacing

SOURCES = sorted(Path(__file__).parent.glob("*.c"))
HEADERS = sorted(Path(__file__).parent.glob("*.h"))
# The compiler's options for the vectors that PyTorch finds the processor to have.
VECTORS = {
    "AVX2": ["-mavx2", "-mfma"],
    "AVX512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma"],
}


class KernelError(FashionError):
    """The kernels cannot be compiled or loaded on this machine."""


def takes(model: nn.Module) -> bool:
    """Return whether the kernels support the model's parameters: float32, on the CPU."""
    return all(p.is_cpu and p.dtype == torch.float32 for p in model.parameters())


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels, cached by source, compiler, flags and kind of processor.

    The compiler is the environment variable CC, else cc: GCC or Clang.

    Raises:
        KernelError: the compiler is missing or fails, or the cache cannot be written.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    flags = ["-O2", "-fPIC", "-shared", "-pthread"]
    capability = torch.backends.cpu.get_cpu_capability()
    flags += VECTORS.get(capability, [])
    # A home folder may be shared by machines of several kinds.
    machine = (platform.system(), platform.machine(), capability)
    sources = b"".join(source.read_bytes() for source in (*SOURCES, *HEADERS))
    key = hashlib.sha256(" ".join([*compiler, *flags, *machine]).encode() + sources).hexdigest()
    folder, prefix = cache_dir() / "kernels", f"fashion-{key[:16]}"
    try:
        path = _cached(folder, prefix) or _compile([*compiler, *flags], folder, prefix)
        kernels = ctypes.CDLL(str(path))
    except (OSError, FileError, KernelError) as error:
        reason = str(error).splitlines()[0]
        remedy = (
            "install a C compiler" if isinstance(error, KernelError) else f"make {folder} writable"
        )
        raise KernelError(
            f"the native kernels cannot be compiled ({reason}): {remedy}, or train with"
            " --kernels torch"
        ) from error
    pointer, integer, real = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
    kernels.tinyvgg_tape.argtypes = [integer] * 2
    kernels.tinyvgg_tape.restype = ctypes.c_long
    kernels.tinyvgg_forward.argtypes = [pointer] * 3 + [integer] * 2 + [pointer, integer]
    kernels.tinyvgg_backward.argtypes = [pointer] * 2 + [integer] * 2 + [pointer] * 2 + [integer]
    kernels.tinyvgg_step.argtypes = [pointer] * 3 + [integer] * 3 + [pointer, real, integer]
    kernels.mlp_step.argtypes = [pointer] * 3 + [integer] * 2 + [pointer] * 4 + [real]
    for function in ("tinyvgg_forward", "tinyvgg_backward", "tinyvgg_step", "mlp_step"):
        getattr(kernels, function).restype = None
    return kernels


def _cached(folder: Path, prefix: str) -> Path | None:
    """Return a compiled file whose content is the one that was written.

    Loading a truncated one, as a crash or a full disk leaves it, would kill the process.
    """
    for path in folder.glob(f"{prefix}-*.so"):
        if path.stem == f"{prefix}-{_digest(path)}":
            return path
    return None


def _compile(command: list[str], folder: Path, prefix: str) -> Path:
    """Compile the sources to a file in `folder` whose name contains the digest of its content."""
    with tempfile.TemporaryDirectory() as temporary:
        compiled = Path(temporary, "kernels.so")
        _run([*command, "-o", str(compiled), *map(str, SOURCES), "-lm"])
        path = folder / f"{prefix}-{_digest(compiled)}.so"
        with replacing(path) as file:
            file.write_bytes(compiled.read_bytes())
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _run(command: list[str]) -> None:
    """Run the compiler; if it fails, raise KernelError with its error text."""
    try:
        # Usually a second; the limit is against hanging.
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        raise KernelError(f"{command[0]}: {error}") from error
    if done.returncode:
        raise KernelError(done.stderr.strip() or f"{command[0]} failed")
