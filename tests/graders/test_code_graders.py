"""Programs in responses, and outputs beside expected ones: what needs no sandbox."""

import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.graders.fences import extract_program
from omniopd.graders.harness import to_json
from omniopd.graders.outputs import same_output, same_value


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```\n```\nb\n```\n```bash\nls\n```", "a\n"),
        ("```\na\n```\n```\nb\n```\n```bash\nls\n```", "b\n"),
        ("```python\na\n```\n```py\nb\n```", "b\n"),
        ("```PYTHON3.11\na\n```", "a\n"),
        ("no code", None),
        ("```python\nunfinished", None),
        ("```python\na\n```\n```python\nunfinished", "a\n"),
        ("```cpp\na\n```", None),
        ("   ```python\n   if a:\n       b\n   ```", "if a:\n    b\n"),
        ("1. ```py\n   a\n   ```", "a\n"),
        ("So ```x``` it is:\n```py\na\n```", "a\n"),
        ("```py\n'''\n    ```\n    '''\na\n```", "'''\n    ```\n    '''\na\n"),
        ("```py\r\na\r\n```\r\n", "a\n"),
        ("~~~py\n```\n~~~", "```\n"),
    ],
)
def test_the_program_is_the_last_tagged_block_or_the_last_without_a_tag(response, program):
    assert extract_program(response) == program


@given(st.text(st.sampled_from("abc =(1)\n"), max_size=40), st.sampled_from(["```", "~~~", "````"]), st.integers(0, 5))
def test_a_block_gives_back_its_code_whatever_its_indentation(code, fence, indent):
    code = "x = 1\n" + code
    lines = [" " * indent + line for line in [f"{fence}python", *code.split("\n"), fence]]
    wanted = [line if line.strip() else "" for line in code.split("\n")]
    assert extract_program("\n".join(["Here:", *lines, "Done."])) == "\n".join([*wanted, ""])


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("1 2\n3\n", "1 2 \n3", True), ("1\n2", "1 2", False), ("1\n\n2\n", "1\n2", True), ("1\r\n2\r\n", "1\n2", True),
        ("0.3333333", "0.33333333", True), ("1e-9", "0.0", True), ("0.34", "0.33", False), ("2", "2.0", True),
        ("2.0", "2", True), ("2.1", "2", False), ("1000000001", "1000000000", False), ("YES", "Yes", False),
        ("", "", True), ("nan", "1.0", False), ("inf", "1e400", False), ("1e400", "1e400", True), ("1 2", "1", False),
        ("5", "1e400", False), ("-1e400", "5.0", False),
        ("007", "7", False), ("1_000.0", "1000.0", False), ("1e99999", "0.0", False), ("٣", "3", False),
    ],
)  # fmt: skip
def test_outputs_are_compared_line_by_line_and_word_by_word(got, expected, same):
    assert same_output(got, expected) == same


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_decimal_numbers_agree_as_numpy_has_it(got, expected):
    assert same_output(repr(got), repr(expected)) == bool(np.isclose(got, expected))


KEY = "5e7"


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        (12, "12", True), ("12", "12", True), ("12", '"12"', True), (12, '"12"', False), ("12", 12, False),
        ("[1]", "[1]", True), ([1], "[1]", True), (1, [1], True), (1, "[1]", True), ([1], [[1]], True),
        (1, [1, 2], False), ((1, (2, 3)), [1, [2, 3]], True), ({3, 1, 2}, [1, 2, 3], True), ({1}, [1, 1], False),
        ({"a", 1}, [1, "a"], True), ([{2, 1}], [[1, 2]], True), (set(), [], True), ({1}, 1, False),
        (0.1 + 0.2, 0.3, True), (2.0, 2, True), (2.0000001, 2, False), (2.1, 2.0, False), (True, 1, True),
        (math.inf, math.inf, True), (1.0, math.inf, False), (math.nan, 1.0, False), ({1: 2}, {"1": 2}, True),
        ({}, [], False),
        (None, None, True), (None, "null", True), (np.float32(0.5), 0.5, True), (np.array([[1, 2]]), [[1, 2]], True),
        ([np.bool_(True)], [True], True), (Fraction(1, 4), 0.25, True), (Decimal("0.5"), 0.5, True),
        ({np.int64(1): np.int64(2)}, {"1": 2}, True), (10**400, 1.0, False),
    ],
)  # fmt: skip
def test_returned_values_are_compared_as_values(value, expected, same):
    assert same_value(json.dumps(to_json(value, KEY)), expected, KEY) == same


def test_what_is_no_json_is_no_answer():
    assert not same_value("1\n]", 1, KEY)
    assert not same_value("[" * 100_000, 1, KEY)
    with pytest.raises(TypeError):
        json.dumps(to_json((x for x in [1]), KEY))
