"""A student that the trainer could not take is refused before its first token is sampled."""

import json
import shutil

import pytest

from omniopd.stages.generate.stage import generate
from omniopd.store.errors import ConfigChangedError, InputError
from support.runs import STUDENT, change_student


@pytest.fixture
def student(tmp_path):
    return shutil.copytree(STUDENT, tmp_path / "model")


def index(student):
    (student / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda student: change_student(student, tie_word_embeddings=False), "has no weight lm_head.weight"),
        (lambda student: change_student(student, model_type="gpt2"), "does not support the architecture gpt2"),
        (lambda student: change_student(student, attention_bias=True), "does not support attention_bias"),
        (index, "holds two models"),
        (lambda student: (student / "model.safetensors").write_bytes(b"cut off"), "cannot be read"),
    ],
)
def test_what_the_trainer_refuses_is_refused_before_anything_is_sampled(make_run, student, spoil, line):
    run = make_run(student={"model": str(student)})
    spoil(student)
    with pytest.raises(InputError, match=line):
        generate(run, 0, run.config())
    assert run.round(0).trajectories.manifest.rows == 0


def test_a_student_that_is_only_trained_is_checked_before_the_teacher_is_asked(make_run, student):
    run = make_run(student={"model": str(student)}, train={"objective": "sft"})
    change_student(student, tie_word_embeddings=False)
    with pytest.raises(InputError, match=r"has no weight lm_head\.weight"):
        generate(run, 0, run.config())
    assert run.round(0).trajectories.manifest.rows == 0


def test_another_student_in_a_later_round_is_refused(make_run, generated, student, tmp_path):
    """It is the reference of the KL anchor."""
    run = make_run(questions=2)
    generated(run)
    shutil.copytree(STUDENT, run.round(0).policy)
    other = STUDENT.parent / "teacher"
    with pytest.raises(ConfigChangedError, match="the student of round 0 is the reference of all rounds"):
        generate(run, 1, run.config((f"student.model={other}",)))
    # The same weights under another name are the same student.
    generate(run, 1, run.config((f"student.model={student}",)))
