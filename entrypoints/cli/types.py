"""Types of options that are not settings of a training run."""

import re
from pathlib import Path
from typing import Any

import click

from fashion.errors import FashionError
from fashion.files import expanded
from fashion.settings.tags import RESERVED


class RunToResume(click.ParamType):
    """The id of a run, its first characters as `compare` shows them, or "latest"."""

    name = "run"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if re.fullmatch("|latest|[0-9a-f]{32}", value):
            return value
        if not re.fullmatch("[0-9a-f]{4,31}", value):
            self.fail(f"{value!r} is neither a run id nor latest.", param, ctx)
        from fashion.tracking import checkpoint  # imports torch

        found = [run_id for run_id in checkpoint.unfinished() if run_id.startswith(value)]
        if not found:
            self.fail(f"this machine has no unfinished run {value}.", param, ctx)
        if len(found) > 1:
            self.fail(f"{value} is the beginning of {' and '.join(found)}.", param, ctx)
        return found[0]


class RunId(click.ParamType):
    """The id of a run."""

    name = "run"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch("|[0-9a-f]{32}", value):
            self.fail(f"{value!r} is not the id of a run, of 32 characters.", param, ctx)
        return value


class Tag(click.ParamType):
    """A tag of a run, KEY=VALUE, as a pair; not one of those that MLflow or this project sets."""

    name = "tag"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        key, separator, text = value.partition("=")
        if not separator or not re.fullmatch(r"[\w./ -]+", key):
            self.fail(f"{value!r} is not KEY=VALUE.", param, ctx)
        if key.startswith("mlflow.") or key in RESERVED:
            self.fail(f"the tag {key} has a meaning of its own: choose another key.", param, ctx)
        return key, text


class UserPath(click.ParamType):
    """A path, in which ~ stands for the home folder: `mlflow run -P` passes it on unexpanded."""

    name = "path"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return str(expanded(value)) if value.startswith("~") else value
        except FashionError as error:
            self.fail(f"{error}.", param, ctx)


# More test images than anybody names; a longer range would fill the memory.
MOST_IMAGES = 1_000_000


class Indices(click.ParamType):
    """Indices of test images: numbers and ranges, separated by commas."""

    name = "indices"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[int]:
        indices: list[int] = []
        for part in filter(None, (part.strip() for part in value.split(","))):
            match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part)
            if match is None:
                self.fail(f"{part!r} is neither an index nor a range like 10-14.", param, ctx)
            first, last = int(match[1]), int(match[2] or match[1])
            if first > last:
                self.fail(f"{part} is not in ascending order.", param, ctx)
            if last >= MOST_IMAGES:
                self.fail(f"{part} is more than {MOST_IMAGES:,} images.", param, ctx)
            indices += range(first, last + 1)
        return indices


class OutputFile(UserPath):
    """A path to write to, with one of the allowed suffixes; None if empty."""

    name = "file"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            return None
        path = Path(super().convert(value, param, ctx))
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{value} does not end in {' or '.join(self.suffixes)}.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"the folder {path.parent} does not exist.", param, ctx)
        if path.is_dir():
            self.fail(f"{value} is a folder.", param, ctx)
        return path


class FileStem(click.ParamType):
    """A file name without suffix and folder, which is not hidden; or nothing."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"|[A-Za-z0-9_-][A-Za-z0-9._-]*", value):
            self.fail(
                f"{value!r} may only contain letters, digits and ._- and not start with a dot.",
                param,
                ctx,
            )
        return value
