"""What every task of the demo promises of its problems."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.demo.tasks.task import TASKS, Task

SEEDS = st.integers(0, 2**31)


@pytest.fixture(scope="module", params=TASKS.values(), ids=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return request.param


@given(seed=SEEDS)
def test_a_seed_gives_the_same_distinct_problems(task: Task, seed: int) -> None:
    drawn = task.problems(20, seed=seed, split="train")
    assert drawn == task.problems(20, seed=seed, split="train")
    assert len(set(drawn)) == len(drawn)


@given(one=SEEDS, other=SEEDS)
def test_the_splits_never_overlap(task: Task, one: int, other: int) -> None:
    train, held_out = task.problems(50, seed=one, split="train"), task.problems(50, seed=other, split="heldout")
    assert {problem.split for problem in train} == {"train"}
    assert {problem.split for problem in held_out} == {"heldout"}
    assert not set(train) & set(held_out)
