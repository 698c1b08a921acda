# pyright: strict
"""The graders by their names. Their packages are imported when one is asked for."""

import os

from .verdict import Grader

_MATH_LIMIT_S = 10.0


def workers() -> int:
    """How many responses are graded at a time: one a core."""
    return len(os.sched_getaffinity(0))


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
