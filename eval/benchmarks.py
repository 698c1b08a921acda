"""Benchmarks: questions with the answers or the tests that decide about a response. From the hub, or from a file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..graders.code import parse_tests
from ..stages.generate.conversations import conversation_of, last_question_of
from ..stages.generate.dataset import Source, answer_of, open_dataset, reach, tests_of
from ..stages.generate.files import Row, format_of
from ..store.conversation import Conversation
from ..store.errors import InputError, UsageError


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, and what a response to it is compared with."""

    question_id: str
    conversation: Conversation
    reference: str
    """The answer; or the tests, as JSON (graders/code.py)."""


@dataclass(frozen=True)
class Benchmark:
    """Questions that are graded in the same way."""

    name: str
    code: bool
    """Whether references are tests."""
    questions: tuple[Question, ...]

    @property
    def fingerprint(self) -> str:
        """Hash of all that the figures depend on."""
        rows = [(q.question_id, q.conversation.identity, q.reference) for q in self.questions]
        return hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class HubBenchmark:
    """Where a benchmark is on the hub, and how its columns are called (a dot reaches into a struct)."""

    dataset: str
    split: str
    question: str
    reference: str
    id_: str | None = None
    subset: str | None = None
    code: bool = False
    integers: bool = False
    """Answers are whole numbers, some written as 025 or 27.0."""
    filter_: str | None = None
    draw: int | None = None
    """Take this many at random, always the same ones."""


def _prime(category: str) -> HubBenchmark:
    # §5.1: 100 random instances of the validation split for each source.
    return HubBenchmark(
        "PRIME-RL/Eurus-2-RL-Data", "validation", "prompt", "reward_model.ground_truth",
        code=True, filter_=f"data_source = '{category}'", draw=100,
    )  # fmt: skip


HUB: dict[str, HubBenchmark] = {
    "math500": HubBenchmark("HuggingFaceH4/MATH-500", "test", "problem", "answer", id_="unique_id"),
    "aime24": HubBenchmark("HuggingFaceH4/aime_2024", "train", "problem", "answer", id_="id", integers=True),
    "aime25": HubBenchmark("math-ai/aime25", "test", "problem", "answer", id_="id", integers=True),
    "amc23": HubBenchmark("math-ai/amc23", "test", "question", "answer", id_="id", integers=True),
    "olympiadbench": HubBenchmark(
        "Hothan/OlympiadBench", "train", "question", "final_answer", id_="id", subset="OE_TO_maths_en_COMP"
    ),
    **{name: _prime(name) for name in ("apps", "codecontests", "taco", "codeforces")},
}
"""The benchmarks of the paper (§5.1) by the names that the command line knows."""

_NAMES = {
    "question": ("question", "problem", "prompt"),
    "answer": ("answer", "final_answer"),
    "tests": ("tests",),
    "id": ("id", "question_id", "unique_id", "task_id"),
}
"""Columns of a file: the first that it has is taken."""

_DRAW_SEED = 0
_TOOLS = "tools"


def load_benchmark(name: str) -> Benchmark:
    """A benchmark by its name, or from a .jsonl, .parquet or .csv file or a folder of such.

    Raises:
        UsageError: neither a known name nor such a file.
        InputError: the hub cannot be reached; a line is damaged; a column, an answer or an id is missing; tests are in
            no form that the grader knows; an id is there twice.
    """
    if name in HUB:
        return _from_hub(name, HUB[name])
    source = Source((name,), None, "test", "--benchmark", "question", "")
    if not source.is_local:
        raise UsageError(
            f"There is no benchmark {name!r}.", f"Known: {', '.join(HUB)}; or give a .jsonl, .parquet or .csv file."
        )
    return _from_file(source)


def _from_hub(name: str, spec: HubBenchmark) -> Benchmark:
    hint = f"Download it where there is a hub, and give the file: --benchmark {name}.jsonl (docs/evaluation.md)."
    source = Source((spec.dataset,), spec.subset, spec.split, "--benchmark", "question", hint)
    dataset = open_dataset(source)
    columns = dataset.columns()
    paths = [path for path in (spec.question, spec.reference, spec.id_) if path is not None]
    for path in paths:
        if path.partition(".")[0] not in columns:
            raise InputError(
                f"{spec.dataset} has changed: it has no column {path!r} (it has {', '.join(columns)}).", hint
            )
    needs = dict.fromkeys(paths, ("--benchmark", "question"))
    rows = list(dataset.rows(needs, spec.filter_))
    if spec.id_ is None:
        # Without ids a question is known by its text, so a copy is not another question.
        rows = list({last_question_of(row, spec.question): row for row in reversed(rows)}.values())[::-1]
    if spec.draw is not None:
        order = np.random.default_rng(_DRAW_SEED).permutation(len(rows))[: spec.draw]
        rows = [rows[i] for i in sorted(order)]
    return _build(name, rows, _Columns(spec.question, spec.reference, spec.id_, spec.code, spec.integers, chats=False))


def _from_file(source: Source) -> Benchmark:
    dataset = open_dataset(source)
    columns = dataset.columns()
    found = {role: next((name for name in names if name in columns), None) for role, names in _NAMES.items()}
    question, reference = found["question"], found["tests"] or found["answer"]
    if question is None:
        raise _no_column(source.label, "question", columns)
    if reference is None:
        raise _no_column(source.label, "answer", columns)
    needs = {path: ("--benchmark", "question") for path in (question, reference, found["id"]) if path is not None}
    read = _Columns(question, reference, found["id"], code=found["tests"] is not None, integers=False, chats=True)
    return _build(source.label, list(dataset.rows(needs, also=(_TOOLS,))), read)


@dataclass(frozen=True)
class _Columns:
    """Where the parts of a question are, and how its reference is read."""

    question: str
    reference: str
    id_: str | None
    code: bool
    integers: bool
    chats: bool
    """Whether a chat is asked whole; the hub's benchmarks ask its last user message, as the paper did."""

    def conversation_of(self, row: Row) -> Conversation | None:
        """What is asked; None where nothing is."""
        if self.chats:
            return conversation_of(row, self.question, _TOOLS)
        question = last_question_of(row, self.question)
        return Conversation.of(question) if question else None

    def reference_of(self, row: Row) -> str:
        """
        Raises:
            InputError: there is none, or it is no test that the grader knows.
        """
        if not self.code:
            return answer_of(row, self.reference, integers=self.integers)
        tests = tests_of(row, self.reference)
        if tests:
            try:
                parse_tests(tests)
            except InputError as error:  # now, not after the sampling
                raise InputError(f"{row.where}: {error.problem}", error.hint) from error
        return tests


def _no_column(source: str, role: str, columns: Sequence[str]) -> InputError:
    wanted = f"{role!r} (or {', '.join(map(repr, _NAMES[role][1:]))})"
    if role == "answer":
        wanted += ", and no 'tests'"
    return InputError(f"{source} has no column {wanted}; it has {', '.join(columns)}.", "Rename the column.")


def _build(name: str, rows: Sequence[Row], columns: _Columns) -> Benchmark:
    if not rows:
        raise InputError(f"The benchmark {name} holds no question.", "Give a file with one row a question.")
    questions: dict[str, Question] = {}
    for row in rows:
        asked = columns.conversation_of(row)
        if asked is None:
            raise InputError(f"{row.where}: there is no question.", "Drop the row, or fill it in.")
        reference = columns.reference_of(row)
        if not reference:
            what = "are no tests" if columns.code else "is no answer"
            raise InputError(f"{row.where}: there {what}.", "Drop the row, or fill it in.")
        id_ = None if columns.id_ is None else reach(row.values, columns.id_)
        key = _hash(asked.identity) if id_ is None else str(id_)
        if key in questions:
            what = "question" if id_ is None else f"id {key!r}"
            raise InputError(f"{row.where}: an earlier row has the same {what}.", "Drop one, or give each its own.")
        questions[key] = Question(key, asked, reference)
    return Benchmark(_stem(name), columns.code, tuple(questions.values()))


def _stem(name: str) -> str:
    """What results are called: a name of the hub's as it is, a file's without its suffixes."""
    if format_of(name) is None:
        return Path(name).name
    return Path(name).name.removesuffix(".gz").removesuffix(".zst").rpartition(".")[0]


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
