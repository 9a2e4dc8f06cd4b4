"""Make tables safe to open in a spreadsheet program."""

from typing import Any

import pandas as pd

# Excel, LibreOffice and Google Sheets run a cell with such a first character as a formula, which
# may load a web page or start a program. Source: OWASP, "CSV Injection".
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def harmless(table: pd.DataFrame) -> pd.DataFrame:
    """Put an apostrophe before texts that a spreadsheet would run as a formula.

    Numbers stay as they are, negative ones too.
    """
    return table.map(_as_text)


def _as_text(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value
