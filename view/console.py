"""Where the commands print: a terminal as wide as it is, a file or a pipe without a width, in any locale."""

import io
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


def allow_every_character() -> None:
    """What models write fits into no locale but UTF-8. A file or a pipe is written in UTF-8 whatever the locale is; a
    terminal gets an escape in place of a character that it lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="backslashreplace")
