"""The shipped models: ordinary folders, an exact tokenizer, and the accuracies that the demo relies on."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.demo.pretrain.sums import RECIPES, VOCABULARY, accuracy, build_tokenizer, example
from omniopd.demo.tasks.sums import problems, solve, write
from omniopd.demo.tasks.task import SUMS, WORDED, Task
from omniopd.demo.teacher.decoder import Decoder
from omniopd.demo.teacher.process import MODELS
from omniopd.store.config import Config

TOKENIZER = build_tokenizer()
HELD_OUT = problems(128, seed=3, split="heldout")


@pytest.fixture(scope="module", params=["teacher", "student"])
def shipped(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    """``(name, model, tokenizer)`` loaded the ordinary way."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder: Path = MODELS / request.param
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return request.param, model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


@given(st.text())
def test_the_tokenizer_gives_any_text_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert len(ids) == len(text.encode()) or "<" in text
    assert TOKENIZER.decode(ids) == text


def test_the_shipped_tokenizer_is_the_built_one(shipped: tuple[str, Any, Any]) -> None:
    _, model, tokenizer = shipped
    text = "27+58-14\n27+58=85\n  #### 71 é\n"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) == model.config.vocab_size == VOCABULARY
    assert tokenizer.chat_template is None
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id


def test_the_shipped_models_are_small(shipped: tuple[str, Any, Any]) -> None:
    name, model, _ = shipped
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    assert sum(file.stat().st_size for file in (MODELS / name).iterdir()) < 4 * 2**20


def test_the_shipped_accuracies(shipped: tuple[str, Any, Any]) -> None:
    name, _, _ = shipped
    measured = accuracy(Decoder(MODELS / name), HELD_OUT, greedy=False)["pass@1"]
    assert isinstance(measured, float)
    assert measured >= 0.95 if name == "teacher" else 0.3 <= measured <= 0.6


def test_a_slip_counts_in_the_students_loss_only() -> None:
    teacher, student = RECIPES
    for problem in HELD_OUT[:20]:
        ids, labels = example(problem, replace(student, slip_rate=1.0), random.Random(0), TOKENIZER)
        teacher_ids, teacher_labels = example(problem, replace(teacher, slip_rate=1.0), random.Random(0), TOKENIZER)
        assert ids == teacher_ids
        text = problem.prompt + write(solve(problem, lambda: True))
        assert TOKENIZER.decode(ids) == text + "<eos>"
        left_out = [i for i, (a, b) in enumerate(zip(labels, teacher_labels, strict=True)) if a != b]
        slipped = "".join(str(step.result) for step in solve(problem, lambda: True) if step.slipped)
        assert TOKENIZER.decode([ids[i] for i in left_out]) == slipped


@pytest.mark.parametrize("task", [SUMS, WORDED], ids=lambda task: task.name)
def test_a_task_trains_in_the_precision_that_it_samples_in_on_a_gpu_too(task: Task, tmp_path: Path) -> None:
    config = Config.model_validate(task.config(tmp_path / "p.jsonl", 4))
    assert config.train.on(cuda=True).precision == {"float32": "fp32", "bfloat16": "bf16"}[config.student.dtype]
