# pyright: strict
"""Programs: the last code block of a response, run in the sandbox against the question's tests, up to the first
failure.

Tests are JSON, in one of three forms:

- {"inputs": [text, ...], "outputs": [text, ...]}: a program that reads standard input and writes standard output, as
  in APPS, CodeContests, TACO and the data of PRIME;
- the same with "fn_name": a function, or a method of a class Solution; an input is a list of arguments, or a text with
  one JSON value a line; an output is what it returns, as JSON or in a list of one;
- {"test": text}: Python that follows the program and asserts, as in HumanEval and MBPP.

The expected outputs never enter the sandbox. In the third form the assertions do, beside the program that they test: it
can know them, so such a test is only as honest as the model.
"""

import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

from ..store.errors import InputError
from .sandbox import Limits, check, run
from .verdict import Verdict

_BLOCK = re.compile(r"```[ \t]*([\w+#-]*)[^\n]*\n(.*?)```", re.DOTALL)
_PYTHON = ("", "py", "python", "python3")
_TOLERANCE = 1e-6
"""Relative and absolute, of a decimal number in the output."""

_CALL = """
{imports}
exec(compile({program!r}, "solution.py", "exec"))
def _omniopd_call():
    import json, sys
    arguments = json.load(sys.stdin)
    target = Solution() if "Solution" in globals() else None
    function = getattr(target, {name!r}) if target is not None else globals()[{name!r}]
    print({nonce!r} + json.dumps(function(*arguments)))
_omniopd_call()
"""
_IMPORTS = (
    "from typing import *\nfrom collections import *\nfrom functools import *\nfrom itertools import *\n"
    "from heapq import *\nfrom bisect import *\nimport collections, functools, itertools, heapq, bisect, math, re\n"
)
"""What sites that ask for a function have imported for it."""


class CodeTests:
    """Grades a program by its tests."""

    name = "tests"

    def __init__(self, limits: Limits) -> None:
        """
        Raises:
            InputError: this machine cannot confine a program, so none is run.
        """
        check(limits)
        self._limits = limits

    @property
    def settings(self) -> Mapping[str, Any]:
        return asdict(self._limits)

    def grade(self, response: str, reference: str) -> Verdict:
        """Run the response's program.

        Args:
            reference: The tests, as JSON.

        Raises:
            InputError: they are in none of the forms above.
        """
        program = extract_program(response)
        if program is None:
            return Verdict(False, "no_answer")
        tests = parse_tests(reference)
        if "test" in tests:
            return self._assert(program, str(tests["test"]))
        for index, (given, expected) in enumerate(zip(tests["inputs"], tests["outputs"], strict=True)):
            verdict = self._one(program, tests.get("fn_name"), given, expected)
            if not verdict.correct:
                return Verdict(False, verdict.reason, program, f"test {index}: {verdict.detail}")
        return Verdict(True, "right", program)

    def close(self) -> None:
        """Nothing outlives a call."""

    def _one(self, program: str, fn_name: str | None, given: Any, expected: Any) -> Verdict:
        if fn_name is None:
            outcome = run(program, _as_text(given), self._limits)
            right = same_output(outcome.stdout, _as_text(expected))
            shown = outcome.stdout
        else:
            # What the program itself prints is not the answer.
            nonce = secrets.token_hex(8)
            call = _CALL.format(imports=_IMPORTS, program=program, name=fn_name, nonce=nonce)
            outcome = run(call, json.dumps(_arguments(given)), self._limits)
            shown = outcome.stdout.rpartition(nonce)[2]
            right = nonce in outcome.stdout and _same_value(shown, expected)
        if outcome.status != "ok":
            return Verdict(False, outcome.status, detail=outcome.message)
        return Verdict(right, "right" if right else "wrong", detail="" if right else f"wrote {shown[:200]!r}")

    def _assert(self, program: str, test: str) -> Verdict:
        # A program that ends early, with success, has passed nothing.
        nonce = secrets.token_hex(8)
        outcome = run(f"{program}\n{test}\nprint({nonce!r})", "", self._limits)
        if outcome.status != "ok":
            return Verdict(False, outcome.status, program, outcome.message)
        right = outcome.stdout.rstrip().endswith(nonce)
        return Verdict(right, "right" if right else "wrong", program, "" if right else "ended before its test")


def extract_program(response: str) -> str | None:
    """The last block of Python in a response (after its thoughts, where they are marked), or None."""
    blocks = _BLOCK.findall(response.rpartition("</think>")[2])
    python = [code for language, code in blocks if language.lower() in _PYTHON]
    return python[-1] if python else None


def parse_tests(reference: str) -> dict[str, Any]:
    """Tests from JSON.

    Raises:
        InputError: they are in none of the three forms.
    """
    try:
        tests: Any = json.loads(reference)
    except ValueError as error:
        raise _unknown(f"are no JSON ({error})") from error
    if not isinstance(tests, dict):
        raise _unknown("are no JSON object")
    tests = cast("dict[str, Any]", tests)
    if isinstance(tests.get("test"), str):
        return tests
    inputs, outputs = tests.get("inputs"), tests.get("outputs")
    if not (isinstance(inputs, list) and isinstance(outputs, list)):
        raise _unknown("have neither inputs and outputs nor a test")
    count, expected = len(cast("list[Any]", inputs)), len(cast("list[Any]", outputs))
    if count == 0 or count != expected:
        raise _unknown(f"have {count} inputs and {expected} outputs")
    return tests


def _unknown(problem: str) -> InputError:
    return InputError(
        f"The tests of a question {problem}.",
        'Write {"inputs": [...], "outputs": [...]} or {"test": "assert ..."}; docs/evaluation.md has examples.',
    )


def same_output(got: str, expected: str) -> bool:
    """Whether two outputs agree: word by word, decimal numbers within 1e-6. Pure."""
    got_lines, expected_lines = _lines(got), _lines(expected)
    if got_lines == expected_lines:
        return True
    got_words, expected_words = " ".join(got_lines).split(), " ".join(expected_lines).split()
    return len(got_words) == len(expected_words) and all(map(_same_word, got_words, expected_words))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def _same_word(got: str, expected: str) -> bool:
    if got == expected:
        return True
    # Integers are exact: a word is decimal by its point or exponent.
    if not re.fullmatch(r"[+-]?(\d+\.\d*|\.\d+|\d+(\.\d*)?[eE][+-]?\d+)", expected):
        return False
    try:
        return math.isclose(float(got), float(expected), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    except ValueError:
        return False


def _as_text(value: Any) -> str:
    return "\n".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)


def _arguments(given: Any) -> Any:
    if isinstance(given, str):
        return [json.loads(line) for line in given.splitlines() if line.strip()]
    return given


def _same_value(got: str, expected: Any) -> bool:
    try:
        value = json.loads(got)
    except (ValueError, RecursionError):  # it went on to print, or nested without end
        return False
    if isinstance(expected, str):
        try:
            expected = json.loads(expected)
        except ValueError:  # a text that is meant as such
            return bool(value == expected)
    return _close(value, expected) or _close([value], expected)


def _close(got: Any, expected: Any) -> bool:
    """Equality of JSON values, decimal numbers within 1e-6."""
    if isinstance(expected, list) and isinstance(got, list):
        values, wanted = cast("list[Any]", got), cast("list[Any]", expected)
        return len(values) == len(wanted) and all(map(_close, values, wanted))
    if isinstance(expected, float) and isinstance(got, int | float):
        return math.isclose(got, expected, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(got == expected)
