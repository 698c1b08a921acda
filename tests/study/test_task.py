"""What a task is evaluated on, and which changes of the config are refused."""

import pytest

from omniopd.store.config import config_of
from omniopd.store.studies import StudyDir
from omniopd.study.arms import REFERENCE, Arm
from omniopd.study.task import Task, changed_settings


def config_with(**eval_):
    values = {
        "student": {"model": "student"},
        "data": {"prompts": "prompts.jsonl"},
        "teacher": {"model": "teacher"},
        "run": {"rounds": 3},
        "eval": {"benchmark": "math500", "graders": ["math_verify"], **eval_},
    }
    return config_of(values, "")


@pytest.mark.parametrize(
    ("name", "curve", "rounds"),
    [(REFERENCE, False, [0, 3]), ("sft", False, [3]), (REFERENCE, True, [0, 1, 2, 3]), ("sft", True, [1, 2, 3])],
)
def test_only_the_reference_arm_evaluates_the_initial_student(tmp_path, name, curve, rounds):
    task = Task(StudyDir(tmp_path), config_with(), Arm(name), 0, "math500", curve)
    assert task.evaluated == rounds


@pytest.mark.parametrize(
    ("key", "value"),
    [("samples", 1), ("max_new_tokens", 9), ("temperature", 0.6), ("top_p", 0.9), ("template", "{question}"),
     ("seed", 1)],
)  # fmt: skip
def test_what_responses_are_sampled_with_may_not_change(key, value):
    assert changed_settings(config_with(), config_with(**{key: value})) == [f"eval.{key}"]


def test_another_grader_and_another_benchmark_may_follow():
    assert changed_settings(config_with(), config_with(graders=["dapo_regex"])) == []
    assert changed_settings(config_with(), config_with(benchmark="aime24", samples=64)) == []
