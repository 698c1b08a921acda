"""The embedded tasks by name: problems, models, and the settings that suit them.

*sums* is what `omniopd demo` runs (task.py).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from . import task as sums
from .teacher import MODELS


class Problem(Protocol):
    """A question and its right answer."""

    @property
    def question(self) -> str: ...

    @property
    def answer(self) -> int: ...


class Problems(Protocol):
    """The first ``count`` distinct problems of a seeded stream; the splits never overlap."""

    def __call__(self, count: int, *, seed: int, split: Literal["train", "heldout"]) -> Sequence[Problem]: ...


@dataclass(frozen=True)
class Task:
    """What distilling on an embedded task needs, and what a comparison on it may assume."""

    name: str
    student: Path
    """Folder of the student's weights and tokenizer."""
    teacher: Path
    """Folder of the teacher's, for ``TeacherServer``."""
    problems: Problems
    grade: Callable[[str, int], bool]
    """Whether a response's final answer is the expected one."""
    prompt_template: str
    max_new_tokens: int
    """Enough student tokens for the longest answer and its stop token."""
    settings: Mapping[str, Mapping[str, object]]
    """Sections of a run's config that suit the task: everything but prompts, seeds, rounds and where the teacher is."""
    white_box: bool
    """Whether teacher and student share a tokenizer, so that their distributions can be compared."""


SUMS = Task(
    name="sums",
    student=MODELS / "student",
    teacher=MODELS / "teacher",
    problems=sums.problems,
    grade=sums.grade,
    prompt_template=sums.PROMPT_TEMPLATE,
    max_new_tokens=sums.MAX_NEW_TOKENS,
    # docs/experiments.md says how these figures were chosen.
    settings={
        "generate": {"max_new_tokens": sums.MAX_NEW_TOKENS, "batch_size": 256},
        "select": {"chunks": 3, "chunk_tokens": 6},
        "teacher": {"rollouts": 8, "max_tokens": 6},
        "score": {"unit": "char", "centre": "batch_mean"},
        "train": {"lr": 2e-4, "global_batch": 64, "micro_batch": 32, "loss_rows": 512},
    },
    white_box=True,
)

TASKS = {task.name: task for task in (SUMS,)}
