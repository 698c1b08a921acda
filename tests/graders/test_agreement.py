"""The graders beside verdicts made by hand: what a fair grader says of some 260 programs and 220 mathematical answers.

data/*.jsonl: `correct` is the verdict made by hand. Where one of ours differs, the row says why (`difference` for
programs, the grader's name for mathematics), and the test asks for that difference: a list that is out of date fails.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from omniopd.graders.code import CodeTests
from omniopd.graders.dapo_regex import DapoRegex
from omniopd.graders.math_pool import MathVerify, as_gold
from omniopd.graders.sandbox import Limits

DATA = Path(__file__).parent / "data"


def rows(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


CODE, MATH = rows("code_answers.jsonl"), rows("math_answers.jsonl")


def disagreements(verdicts, cases, difference):
    return [
        (case["about"], verdict.reason, verdict.detail or verdict.extracted)
        for verdict, case in zip(verdicts, cases, strict=True)
        if verdict.correct != (case["correct"] != (difference in case))
    ]


def graded(cases):
    grader = CodeTests(Limits(cpu_s=4, wall_s=60))
    with ThreadPoolExecutor(2) as executor:
        return list(executor.map(lambda case: grader.grade(case["response"], json.dumps(case["tests"])), cases))


def test_the_cases_are_many_and_of_both_kinds():
    for cases in (CODE, MATH):
        assert len(cases) >= 200
        assert len({case["about"] for case in cases}) == len(cases)
        assert sum(not case["correct"] for case in cases) >= 50
    # A grader that says no to all would not do, nor one whose differences are the rule.
    assert sum("difference" in case for case in CODE) <= 1
    assert sum("math_verify" in case for case in MATH) <= 21


def test_twenty_programs_are_graded_as_by_hand():
    cases = CODE[::13]
    assert len(cases) >= 20
    assert disagreements(graded(cases), cases, "difference") == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_programs_are_graded_as_by_hand():
    assert disagreements(graded(CODE), CODE, "difference") == []


def test_math_verify_differs_from_the_verdicts_by_hand_where_it_is_said_to_and_never_from_the_package():
    from math_verify import parse, verify

    grader = MathVerify(60, 1)
    verdicts = [grader.grade(case["response"], case["answer"]) for case in MATH]
    grader.close()
    assert disagreements(verdicts, MATH, "math_verify") == []
    own = [
        verify(parse(as_gold(case["answer"]), parsing_timeout=None), parse(case["response"], parsing_timeout=None))
        for case in MATH
    ]
    assert [verdict.correct for verdict in verdicts] == own


def test_dapos_rule_differs_from_the_verdicts_by_hand_where_it_is_said_to():
    grader = DapoRegex()
    verdicts = [grader.grade(case["response"], case["answer"]) for case in MATH]
    assert disagreements(verdicts, MATH, "dapo_regex") == []
    # It errs on the side of a wrong: it takes nothing for right that is wrong, but for a unit.
    assert [case["about"] for case in MATH if "dapo_regex" in case and not case["correct"]] == ["another unit"]
