"""Text for a terminal of 80 columns."""

from rich.console import Console, RenderableType

WIDTH = 80


def render(*blocks: RenderableType) -> str:
    """Render the blocks one below the other, as plain text of at most `WIDTH` columns."""
    # markup=False: names may contain text that looks like rich's markup.
    # force_jupyter=False: in a notebook rich would also display an empty output.
    console = Console(
        width=WIDTH,
        color_system=None,
        force_jupyter=False,
        markup=False,
        emoji=False,
        highlight=False,
    )
    with console.capture() as capture:
        console.print(*blocks, sep="\n")
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
