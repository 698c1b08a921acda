# pyright: strict
"""Pushes while something long goes on."""

import contextlib
import sys
from collections.abc import Generator

from ..errors import OmniopdError
from ..repeat import repeated
from .writer import Mirror

SECONDS_BETWEEN_PUSHES = 60.0


@contextlib.contextmanager
def pushing(mirror: Mirror | None) -> Generator[None]:
    """Push now and then for the length of a `with`. What cannot be pushed is said and tried again: the money is safe
    by what was reserved in the mirror beforehand."""
    if mirror is None:
        yield
        return

    def push() -> None:
        try:
            mirror.push()
        except OmniopdError as error:
            sys.stderr.write(f"{error}\n")

    with repeated(push, SECONDS_BETWEEN_PUSHES, "mirror"):
        yield
