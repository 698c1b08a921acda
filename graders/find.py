# pyright: strict
"""The graders by their names, and the threads that they are asked from. Their packages are imported when one is asked
for."""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .verdict import Grader

T = TypeVar("T")
R = TypeVar("R")

_MATH_LIMIT_S = 10.0


def workers() -> int:
    """How many responses are graded at a time: one a core."""
    return len(os.sched_getaffinity(0))


def in_parallel(ask: Callable[[T], R], items: Iterable[T], done: Callable[[], None]) -> list[R]:
    """What `ask` says of each item, in their order; `done` is called after each."""
    executor = ThreadPoolExecutor(workers())

    def count(future: Future[R]) -> R:
        result = future.result()
        done()
        return result

    try:
        return [count(future) for future in [executor.submit(ask, item) for item in items]]
    finally:
        # After Ctrl-C or an error, what has not begun is not begun any more.
        executor.shutdown(cancel_futures=True)


def make_grader(name: str) -> Grader:
    """math_verify, dapo_regex or tests.

    Raises:
        InputError: what it needs is not installed, or this machine cannot confine programs.
    """
    if name == "math_verify":
        from .math_pool import MathVerify

        return MathVerify(_MATH_LIMIT_S, workers())
    if name == "tests":
        from .code import CodeTests
        from .sandbox import Limits

        return CodeTests(Limits())
    from .dapo_regex import DapoRegex

    return DapoRegex()
