"""The demo's task: texts, split and grader."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.demo.tasks.sums import (
    MAX_NEW_TOKENS,
    MIN_CARRIES,
    STEPS,
    Problem,
    carries,
    grade,
    parse_question,
    problems,
    solve,
    write,
)

SEEDS = st.integers(0, 2**31)


def test_the_documented_example() -> None:
    problem = Problem((27, 58, -14, 35))
    assert problem.question == "27+58-14+35"
    assert write(solve(problem)) == "27+58=85\n85-14=71\n71+35=106\n#### 106"
    assert write(solve(problem, lambda: True)) == "27+58=75\n75-14=61\n61+35=96\n#### 96"


@given(SEEDS)
def test_a_correct_answer_is_graded_as_correct_and_fits(seed: int) -> None:
    for problem in problems(10, seed=seed, split="heldout"):
        steps = solve(problem)
        assert sum(carries(step.before, step.term) for step in steps) >= MIN_CARRIES
        assert len(steps) == STEPS
        assert all(step.before + step.term == step.result for step in steps)
        assert grade(write(steps), problem.answer)
        assert not grade(write(steps), problem.answer + 10)
        assert len(write(steps)) < MAX_NEW_TOKENS
        assert parse_question(problem.question) == problem


@given(SEEDS)
def test_a_slip_is_off_by_ten_and_carried_on_from(seed: int) -> None:
    rng = random.Random(seed)
    for problem in problems(10, seed=seed, split="train"):
        steps = solve(problem, lambda: rng.random() < 0.5)
        for before, after in pairwise(steps):
            assert before.result == after.before
        for step in steps:
            assert abs(step.before + step.term - step.result) == (10 if step.slipped else 0)
            assert step.result >= 0


@pytest.mark.parametrize(
    ("total", "term", "expected"),
    [(27, 58, True), (27, 52, False), (85, -14, False), (85, -16, True), (30, 20, False), (30, -20, False)],
)
def test_carries(total: int, term: int, expected: bool) -> None:
    assert carries(total, term) is expected


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("1+1=2\n#### 2", 2),
        ("#### 2\n#### 3", 3),
        ("#### 3\nand more", 3),
        ("", None),
        ("#### ", None),
        ("####2", None),
        ("so #### 2", None),
        ("#### 2x", None),
    ],
)
def test_the_last_line_of_the_answers_form_is_graded(response: str, expected: int | None) -> None:
    assert [n for n in range(10) if grade(response, n)] == [expected] * (expected is not None)


@given(st.text())
def test_the_grader_takes_any_text(response: str) -> None:
    assert not grade(response, 7) or "#### " in response


@pytest.mark.parametrize("question", ["", "12", "12+", "12*3", "a+b", "12+3\n"])
def test_a_foreign_question_is_refused(question: str) -> None:
    with pytest.raises(ValueError, match="not a question"):
        parse_question(question)
