"""Read a YAML file that maps option names to values: a configuration, or a search space."""

from pathlib import Path
from typing import Any

import yaml

from fashion.errors import FashionError


class DocumentError(FashionError):
    """A file of settings cannot be read, or is not one."""


def read(path: Path) -> str:
    """Return the text of a file.

    Raises:
        DocumentError: it cannot be read, or is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise DocumentError(f"cannot read {path}: {reason}") from error


def parse(text: str, source: str) -> dict[str, Any]:
    """Return the values by option name, with _ for -; `source` is named in error messages.

    Raises:
        DocumentError: the text is not YAML, or does not map names to values.
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise DocumentError(f"{source}{where}: not valid YAML") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise DocumentError(f"{source}: must map option names to values")
    return {name.replace("-", "_"): value for name, value in content.items()}
