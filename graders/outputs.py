# pyright: strict
"""Is what a program wrote, or what a function returned, the expected output? Pure. docs/evaluation.md has the rule, and
where it departs from the graders of APPS, TACO and LiveCodeBench.
"""

import contextlib
import json
import re
import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, cast

_RELATIVE, _ABSOLUTE = 1e-5, 1e-8
"""Of a decimal number: numpy.allclose's, by which APPS and TACO compare."""
_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,5})?", re.ASCII)


class ReturnedSet(list[Any]):
    """The elements of a set that a function returned: JSON has no sets."""


def same_output(got: str, expected: str) -> bool:
    """Whether two outputs agree: line by line without blank lines, word by word. Two integers agree as texts; a number
    with a point or an exponent agrees with another number within numpy.allclose's tolerance.
    """
    got_lines, expected_lines = _lines(got), _lines(expected)
    return len(got_lines) == len(expected_lines) and all(map(_same_line, got_lines, expected_lines))


def same_value(got: str, expected: Any, set_key: str) -> bool:
    """Whether a returned value is the expected one.

    Args:
        got: The value as JSON, where an object with the single key `set_key` is a set.
        expected: The value; or a text that holds it as JSON, as in LiveCodeBench; or a list that holds it alone, as in
            APPS.
    """

    def set_of(value: dict[str, Any]) -> Any:
        return ReturnedSet(value[set_key]) if set_key in value else value

    try:
        value = json.loads(got, object_hook=set_of)
    except (ValueError, RecursionError):  # it went on to print, or nested without end
        return False
    readings = [expected]
    if isinstance(expected, str):
        with contextlib.suppress(ValueError):
            readings.append(json.loads(expected))
    readings += [cast("list[Any]", one)[0] for one in readings if isinstance(one, list) and len(cast("Any", one)) == 1]
    return any(_close(value, reading) for reading in readings)


def _lines(text: str) -> list[list[str]]:
    return [words for line in text.split("\n") if (words := line.split())]


def _same_line(got: list[str], expected: list[str]) -> bool:
    return got == expected or (len(got) == len(expected) and all(map(_same_word, got, expected)))


def _same_word(got: str, expected: str) -> bool:
    if got == expected:
        return True
    if not (_NUMBER.fullmatch(got) and _NUMBER.fullmatch(expected)):
        return False
    # Zeros in front count where there is no point: 007 is a name, or a row of binary digits.
    if _INTEGER.fullmatch(got) and _INTEGER.fullmatch(expected):
        return False
    return Decimal(got) == Decimal(expected) or _near(float(got), float(expected))


def _near(got: float, expected: float) -> bool:
    """numpy.isclose of finite numbers. It is not symmetric: the tolerance is relative to the expected value."""
    finite = abs(got) <= sys.float_info.max and abs(expected) <= sys.float_info.max
    return finite and abs(got - expected) <= _ABSOLUTE + _RELATIVE * abs(expected)


def _close(got: Any, expected: Any) -> bool:
    """Equality of JSON values. Where a decimal number is expected, numbers agree within the tolerance."""
    if isinstance(got, list) and isinstance(expected, list):
        values, wanted = cast("Sequence[Any]", got), cast("Sequence[Any]", expected)
        if isinstance(got, ReturnedSet):
            values, wanted = _in_order(values), _in_order(wanted)
        return len(values) == len(wanted) and all(map(_close, values, wanted))
    if isinstance(got, dict) and isinstance(expected, dict):
        values, wanted = cast("dict[str, Any]", got), cast("dict[str, Any]", expected)
        return values.keys() == wanted.keys() and all(_close(values[key], wanted[key]) for key in wanted)
    if isinstance(expected, float) and isinstance(got, int | float):
        return got == expected or _near(got, expected)
    return bool(got == expected)


def _in_order(values: Sequence[Any]) -> Sequence[Any]:
    """Some order that does not depend on the one given: of the values, or of their texts where they have none."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=json.dumps)
