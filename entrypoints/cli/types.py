"""Types of options that are not settings of a training run."""

import re
from pathlib import Path
from typing import Any

import click

from fashion.settings.task import TEST_SIZE


class RunToResume(click.ParamType):
    """The id of a run, or "latest"."""

    name = "run"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch("|latest|[0-9a-f]{32}", value):
            self.fail(f"{value!r} is neither a run id nor latest.", param, ctx)
        return value


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
            if not first <= last < TEST_SIZE:
                self.fail(
                    f"{part} is not within 0 to {TEST_SIZE - 1}, in ascending order.", param, ctx
                )
            indices += range(first, last + 1)
        return indices


class OutputFile(click.ParamType):
    """A path to write to, with one of the allowed suffixes; None if empty."""

    name = "file"

    def __init__(self, *suffixes: str) -> None:
        self.suffixes = suffixes

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Path | None:
        if not value:
            return None
        path = Path(value)
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{value} does not end in {' or '.join(self.suffixes)}.", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"the folder {path.parent} does not exist.", param, ctx)
        if path.is_dir():
            self.fail(f"{value} is a folder.", param, ctx)
        return path


class FileStem(click.ParamType):
    """A file name without suffix and folder, which is not hidden."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", value):
            self.fail(
                f"{value!r} may only contain letters, digits and ._- and not start with a dot.",
                param,
                ctx,
            )
        return value
