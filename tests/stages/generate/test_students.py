"""A student that the trainer could not take is refused before its first token is sampled."""

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from omniopd.check import check
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


def adapter(student):
    for name in ("config.json", "model.safetensors"):
        (student / name).unlink()
    (student / "adapter_config.json").write_text('{"peft_type": "LORA"}')


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda student: (student / "config.json").unlink(), "has no config.json"),
        (lambda student: (student / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda student: (student / "config.json").write_text("[]"), "config.json cannot be read"),
        (lambda student: (student / "generation_config.json").write_text("{"), "generation_config.json cannot be read"),
        (adapter, "has an adapter, and not the model"),
    ],
)
def test_a_folder_that_is_no_model_is_one_line_of_check_and_of_generate(make_run, student, spoil, line):
    run = make_run(student={"model": str(student)})
    spoil(student)
    failed = [str(finding) for finding in check(run, run.config()) if finding.verdict == "fail"]
    assert any(line in told for told in failed), failed
    with pytest.raises(InputError, match=line):
        generate(run, 0, run.config())
    assert run.round(0).trajectories.manifest.rows == 0


def test_a_file_in_place_of_a_folder_is_called_a_file(make_run, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    run = make_run(student={"model": str(tmp_path / "model.gguf")})
    with pytest.raises(InputError, match=r"model\.gguf is a file"):
        generate(run, 0, run.config())


def test_a_student_whose_weights_hold_nan_leaves_no_trajectory(make_run, student):
    weights = load_file(student / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, student / "model.safetensors")
    run = make_run(student={"model": str(student)})
    with pytest.raises(InputError, match="log-probs are not finite"):
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
