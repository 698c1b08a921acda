# pyright: strict
"""SIGTERM: what a scheduler sends some time before it kills."""

import contextlib
import signal
import threading
from collections.abc import Callable, Generator


@contextlib.contextmanager
def on_sigterm(action: Callable[[], None]) -> Generator[None]:
    """Do `action` at the first SIGTERM instead of dying, for the length of a `with`; a second one ends the process.

    Only the main thread of a process can ask for signals: elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: object) -> None:
        signal.signal(signal.SIGTERM, before)
        action()

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
