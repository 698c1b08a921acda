# pyright: strict
"""Something that is done now and then while something long goes on."""

import contextlib
import threading
from collections.abc import Callable, Generator


@contextlib.contextmanager
def repeated(what: Callable[[], object], every_s: float, name: str) -> Generator[None]:
    """Call `what` again and again for the length of a `with`, in a thread of its own; at its end a call is waited for.

    Args:
        what: Should not raise: there are no more calls then.
        every_s: Seconds before the first call, and between two.
        name: Of the thread.
    """
    over = threading.Event()

    def work() -> None:
        while not over.wait(every_s):
            what()

    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
