"""Write MLproject from the commands: python -m entrypoints.cli.mlproject

Each option of a command is a parameter of its entry point, with the same default. A test compares
the file with what this writes.
"""

import textwrap
from importlib import import_module
from pathlib import Path

import click

from entrypoints.cli.options import Undeclared
from fashion.files import replacing

PATH = Path(__file__).parents[2] / "MLproject"
ENTRY_POINTS = (
    "main",
    "train",
    "sweep",
    "compare",
    "register",
    "predict",
    "explore",
    "export",
    "replay",
    "close",
)
HEADER = """\
# Written by python -m entrypoints.cli.mlproject from the options of the commands.
name: fashion

conda_env: conda.yaml

entry_points:
"""
# MLflow logs what has a default here, whatever a preset makes of it.
OF_A_PRESET = """\
  # Every other option of the command (python -m entrypoints.{name} --help) is a parameter too; its
  # default is the preset's.
"""


def command_of(entry_point: str) -> click.Command:
    """Return the Click command of an entry point."""
    return getattr(import_module(f"entrypoints.{entry_point}"), entry_point)


def render() -> str:
    """Return what MLproject holds."""
    return HEADER + "\n".join(map(_entry_point, ENTRY_POINTS))


def _entry_point(name: str) -> str:
    declared = {
        option.opts[0].removeprefix("--").replace("-", "_"): option
        for option in command_of(name).params
        if isinstance(option, click.Option) and not isinstance(option, Undeclared)
    }
    block = OF_A_PRESET.format(name=name) if "preset" in declared else ""
    block += f"  {name}:\n    parameters:{'' if declared else ' {}'}\n"
    for parameter, option in declared.items():
        block += f"      {parameter}: {{{_type_and_default(option)}}}\n"
    words = [f"python -m entrypoints.{name}"]
    words += [f"{option.opts[0]} {{{parameter}}}" for parameter, option in declared.items()]
    command = textwrap.fill(
        " ".join(words), width=94, break_long_words=False, break_on_hyphens=False
    )
    return f"{block}    command: >-\n{textwrap.indent(command, ' ' * 6)}\n"


def _type_and_default(option: click.Option) -> str:
    default = option.default[0] if option.multiple else option.default  # type: ignore[index]
    if isinstance(default, int | float) and not isinstance(default, bool):
        return f"type: float, default: {default}"
    text = str(default).lower() if isinstance(default, bool) else default
    return f'type: string, default: "{text}"'


if __name__ == "__main__":
    with replacing(PATH) as path:
        path.write_text(render(), encoding="utf-8")
