"""An event loop of our own, also where one runs already: a notebook's cells are run by one."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


class Interruption:
    """Ctrl-C, for a loop in a thread that hears no signal."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = False
        self._end: Callable[[], object] | None = None

    def ask(self) -> None:
        """Ask the loop to end, now or as soon as it can."""
        with self._lock:
            self._asked = True
            if self._end is not None:
                self._end()

    def calls(self, end: Callable[[], object]) -> None:
        """What ends the loop; it is called in the thread that asks."""
        with self._lock:
            self._end = end
            if self._asked:
                end()


_interruption: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


def interruption() -> Interruption | None:
    """Of this task's loop; None where signals reach it."""
    return _interruption.get()


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, in a thread where a loop runs in this one. Ctrl-C there asks it to end."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(main)
    interruption = Interruption()

    def elsewhere() -> T:
        _interruption.set(interruption)
        return _run(main)

    with ThreadPoolExecutor(1) as thread:
        result = thread.submit(elsewhere)
        try:
            return result.result()
        except KeyboardInterrupt:
            interruption.ask()
            return result.result()


def _run(main: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
