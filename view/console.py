"""Where the commands for people print: a terminal as wide as it is, and a file or a pipe without a width."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_NO_WIDTH = 1_000_000
"""Columns of what has none: no line is broken."""


def open_console() -> "Console":
    """Standard output. Lines are broken where a terminal ends, or where COLUMNS says so; a line of a file is a line."""
    from rich.console import Console

    free = not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit()
    return Console(highlight=False, width=_NO_WIDTH if free else None)
