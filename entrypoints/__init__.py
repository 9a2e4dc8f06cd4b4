"""The commands: python -m entrypoints.NAME, one Click command per file."""

import sys

from fashion.interrupts import block

# `python -m` is about to import the rest of a command, which takes a second; Python calls itself so
# until then. An interruption waits until the command can handle it.
if sys.argv[0] == "-m":
    block()
