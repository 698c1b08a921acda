# pyright: strict
"""Pushes while something long goes on."""

import contextlib
import sys
import threading
from collections.abc import Generator

from ..errors import OmniopdError
from .writer import Mirror

SECONDS_BETWEEN_PUSHES = 60.0


@contextlib.contextmanager
def pushing(mirror: Mirror | None) -> Generator[None]:
    """Push now and then for the length of a `with`. What cannot be pushed is said and tried again: the money is safe
    by what was reserved in the mirror beforehand."""
    if mirror is None:
        yield
        return
    done = threading.Event()

    def push() -> None:
        while not done.wait(SECONDS_BETWEEN_PUSHES):
            try:
                mirror.push()
            except OmniopdError as error:
                sys.stderr.write(f"{error}\n")

    thread = threading.Thread(target=push, name="mirror", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
