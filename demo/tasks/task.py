"""The embedded tasks by name: problems, models, and the settings that suit them.

*sums* is what `omniopd demo` runs (sums.py). *worded* is harder (worded.py): the teacher writes otherwise than the
student and has another tokenizer, the student's weakness is of several kinds, and most of its peaks of entropy are
matters of taste.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from ..teacher.process import MODELS, TeacherServer
from . import sums, worded


class Problem(Protocol):
    """A question and its right answer."""

    @property
    def question(self) -> str: ...

    @property
    def prompt(self) -> str: ...

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

    def config(self, prompts: Path, per_round: int) -> dict[str, dict[str, object]]:
        """Sections of a run's config: the settings, the models and the prompts."""
        values: dict[str, dict[str, object]] = {
            # A model of a megabyte is done before vLLM has started.
            "student": {"model": str(self.student), "engine": "transformers", "dtype": "float32"},
            "data": {"prompts": str(prompts), "template": self.prompt_template, "per_round": per_round},
            "generate": {"processes": 1},  # and before a second process has
            "train": {"precision": "fp32"},  # as it samples, on a GPU too
            "teacher": {"model": TeacherServer.model},
        }
        for section, keys in self.settings.items():
            values.setdefault(section, {}).update(keys)
        return values


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

WORDED = Task(
    name="worded",
    student=MODELS / "worded-student",
    teacher=MODELS / "worded-teacher",
    problems=worded.problems,
    grade=worded.grade,
    prompt_template=worded.PROMPT_TEMPLATE,
    max_new_tokens=worded.MAX_NEW_TOKENS,
    settings={
        "generate": {"max_new_tokens": worded.MAX_NEW_TOKENS, "batch_size": 256},
        "select": {"chunks": 3, "chunk_tokens": 5},
        # Bytes: about as long as the longest chunk, " gives 121, then".
        "teacher": {"rollouts": 8, "max_tokens": 16},
        # The wording differs, so characters would tell of taste more than of sums (Remark 4.5).
        "score": {"unit": "digit", "centre": "batch_mean"},
        "train": {"lr": 2e-4, "global_batch": 64, "micro_batch": 32, "loss_rows": 512},
    },
    white_box=False,
)

TASKS = {task.name: task for task in (SUMS, WORDED)}
