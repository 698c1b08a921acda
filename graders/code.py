# pyright: strict
"""Programs: the last Python block of a response, run in the sandbox against the question's tests, up to the first
failure.

Tests are JSON, in one of three forms:

- {"inputs": [text, ...], "outputs": [text, ...]}: a program that reads standard input and writes standard output, as
  in APPS, CodeContests, TACO and the data of PRIME;
- the same with "fn_name": a function, or a method of a class Solution; an input is a list of arguments, or a text with
  one JSON value a line; an output is what it returns, the same as a JSON text, or either in a list of one;
- {"test": text}: Python that follows the program and asserts, as in HumanEval and MBPP.

The expected outputs never enter the sandbox. In the third form the assertions do, beside the program that they test: it
can know them, so such a test is only as honest as the model.
"""

import functools
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from ..store.errors import InputError
from .fences import extract_program
from .outputs import same_output, same_value
from .sandbox import Limits, check, run
from .verdict import Verdict

_HARNESS = Path(__file__).with_name("harness.py")


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
        if not fn_name:
            outcome = run(program, _as_text(given), self._limits)
            right = same_output(outcome.stdout, _as_text(expected))
            shown = outcome.stdout
        else:
            # What the program itself prints is not the answer.
            nonce = secrets.token_hex(8)
            outcome = run(_harnessed(program, nonce, fn_name), json.dumps(given), self._limits)
            _, returned, shown = outcome.stdout.rpartition(f"{nonce}\n")
            right = bool(returned) and same_value(shown, expected, nonce)
        if outcome.status != "ok":
            return Verdict(False, outcome.status, detail=outcome.message)
        return Verdict(right, "right" if right else "wrong", detail="" if right else f"wrote {shown[:200]!r}")

    def _assert(self, program: str, test: str) -> Verdict:
        # A program that ends early, with success, has passed nothing.
        nonce = secrets.token_hex(8)
        outcome = run(_harnessed(f"{program}\n{test}", nonce, None), "", self._limits)
        if outcome.status != "ok":
            return Verdict(False, outcome.status, program, outcome.message)
        right = outcome.stdout.rstrip().endswith(nonce)
        return Verdict(right, "right" if right else "wrong", program, "" if right else "ended before its test")


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
    inputs, outputs, fn_name = tests.get("inputs"), tests.get("outputs"), tests.get("fn_name") or None
    if not (isinstance(inputs, list) and isinstance(outputs, list)):
        raise _unknown("have neither inputs and outputs nor a test")
    inputs, outputs = cast("list[Any]", inputs), cast("list[Any]", outputs)
    if not inputs or len(inputs) != len(outputs):
        raise _unknown(f"have {len(inputs)} inputs and {len(outputs)} outputs")
    if fn_name is not None and not isinstance(fn_name, str):
        raise _unknown("have a fn_name that is no text")
    if fn_name:
        inputs = [_arguments(given) for given in inputs]
    return {"inputs": inputs, "outputs": outputs, "fn_name": fn_name}


def _unknown(problem: str) -> InputError:
    return InputError(
        f"The tests of a question {problem}.",
        'Write {"inputs": [...], "outputs": [...]} or {"test": "assert ..."}; docs/evaluation.md has examples.',
    )


def _as_text(value: Any) -> str:
    return "\n".join(map(str, cast("list[Any]", value))) if isinstance(value, list) else str(value)


def _arguments(given: Any) -> list[Any]:
    if isinstance(given, str):
        try:
            return [json.loads(line) for line in given.split("\n") if line.strip()]
        except ValueError as error:
            raise _unknown(f"have an input of a function that is not one JSON value a line ({error})") from error
    if not isinstance(given, list):
        raise _unknown("have an input of a function that is no list of arguments")
    return cast("list[Any]", given)


@functools.cache
def _harness() -> str:
    return _HARNESS.read_text(encoding="utf-8")


def _harnessed(program: str, nonce: str, name: str | None) -> str:
    return f"{_harness()}\nmain({program!r}, {nonce!r}, {name!r})\n"
