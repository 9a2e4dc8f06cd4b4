"""Markdown as MLflow's UI shows it."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first column is text and whose others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    # MLflow's UI leaves no space between the columns.
    spaced = [[f"{cell}&emsp;" for cell in line] for line in (header, *rows)]
    lines = [spaced[0], rule, *spaced[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(run_id: str, title: str, name: str) -> str:
    """Return what shows a picture among a run's artifacts."""
    return f"![{title}](get-artifact?path={name}&run_uuid={run_id})"


def text(paragraphs: Sequence[str]) -> str:
    """Return paragraphs as one text; the UI keeps line breaks within a paragraph."""
    return "\n\n".join(paragraphs) + "\n"
