"""What runs inside the sandbox around a program that is called or asserted, not fed by standard input.

code.py sends this file's text, with a call of `main` after it, so it imports the standard library alone. The program
becomes the module `solution`: what stands below `if __name__ == "__main__"` does not run, and the arguments are read
before anything of the program is.
"""

import builtins
import decimal
import json
import numbers
import sys
import types
from typing import Any

_FUNCTIONS = """
from collections import *
from functools import *
from itertools import *
from heapq import *
from bisect import *
from operator import *
from string import *
from math import *
from copy import deepcopy
"""
_MODULES = """
from typing import *
import bisect, collections, copy, datetime, functools, heapq, itertools, json, math, operator, random, re, string
import sys, typing
"""
"""What sites that ask for a function have imported for it. An assertion sees no imported function: operator.add would
stand in for an `add` that the program does not have."""
_RECURSION = 50_000
"""As LiveCodeBench has it: such sites allow deep recursion."""


def main(program: str, marker: str, name: str | None) -> None:
    """Run a program and write the marker and, where a function is named, a line of what it returns as JSON.

    Args:
        name: A function that is called with the arguments on standard input, or a method of a class Solution. None: the
            program has only to reach its end.
    """
    arguments: list[Any] = json.load(sys.stdin) if name else []
    module = types.ModuleType("solution")
    sys.modules["solution"] = module
    sys.setrecursionlimit(_RECURSION)
    # As built-ins, imported names are visible to the program and still none of its own: the function must be.
    imported: dict[str, Any] = {}
    exec((_FUNCTIONS if name else "") + _MODULES, imported)
    module.__dict__["__builtins__"] = {**imported, **vars(builtins)}
    exec(compile(program, "solution.py", "exec", dont_inherit=True), module.__dict__)
    if name is None:
        print(marker, file=sys.__stdout__)
        return
    solution: Any = getattr(module, "Solution", None)
    function = getattr(solution() if hasattr(solution, name) else module, name)
    answer = json.dumps(to_json(function(*arguments), marker))
    # It may have put something of its own in the place of sys.stdout.
    print(f"{marker}\n{answer}", file=sys.__stdout__)


def to_json(value: Any, set_key: str) -> Any:
    """A value without tuples, sets ({set_key: elements}), NumPy's arrays and scalars, fractions and decimals."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, set | frozenset):
        return {set_key: [to_json(one, set_key) for one in value]}
    if isinstance(value, list | tuple):
        return [to_json(one, set_key) for one in value]
    if isinstance(value, dict):
        return {to_json(key, set_key): to_json(one, set_key) for key, one in value.items()}
    if isinstance(value, numbers.Real | decimal.Decimal) and not isinstance(value, int | float):
        return float(value)
    return value
