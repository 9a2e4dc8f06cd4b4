"""What decides a run's bits beside its settings: the processor, the software and this code."""

import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import fashion

# Conditions (settings/experiment.py) that change how results are rounded, but not what is trained.
MAY_CHANGE = ("device_name", "threads", "cpu_capability", "torch_version")
# Packages whose code decides the weights and their evaluation.
PACKAGES = ("settings", "models", "data", "training")


def environment(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a resumed run should find unchanged: those of `params`, and digests of the code.

    Args:
        params: the parameters that `build` returns.
    """
    return {name: params[name] for name in MAY_CHANGE} | code()


def differences(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> list[str]:
    """Name what has changed between two results of `environment`.

    Args:
        before: None if an earlier version of this project did not save it.
        now: the environment of this process.
    """
    if before is None:
        return ["it was started with an earlier version of this project"]
    named = [
        f"{name} was {before.get(name)}, is {now.get(name)}"
        for name in MAY_CHANGE
        if before.get(name) != now.get(name)
    ]
    files = sorted((before.keys() | now.keys()) - set(MAY_CHANGE))
    return named + [f"{file} changed" for file in files if before.get(file) != now.get(file)]


# Once: files that are edited while this process trains do not change what it runs.
@cache
def code() -> dict[str, str]:
    """Return the SHA-256, in hexadecimal, of each source file of `PACKAGES`, by path."""
    root = Path(fashion.__file__).parent
    return {
        path.relative_to(root.parent).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for package in PACKAGES
        for path in sorted((root / package).rglob("*"))
        if path.suffix in (".py", ".c")
    }


def code_digest() -> str:
    """Return the first 32 hexadecimal digits of the SHA-256 of all files of `code`."""
    return hashlib.sha256(str(sorted(code().items())).encode()).hexdigest()[:32]
