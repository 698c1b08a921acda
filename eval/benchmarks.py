"""Benchmarks: questions with the answers or the tests that decide about a response. From the hub, or from a file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..stages.generate.dataset import Source, as_answer, as_question, as_tests, cell, collect, read_frame
from ..store.errors import InputError, UsageError


@dataclass(frozen=True)
class Question:
    """One question of a benchmark, and what a response to it is held against."""

    question_id: str
    text: str
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
        rows = [(q.question_id, q.text, q.reference) for q in self.questions]
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
    """Take so many at random, always the same ones."""


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


def load_benchmark(name: str) -> Benchmark:
    """A benchmark by its name, or from a .jsonl, .parquet or .csv file.

    Raises:
        UsageError: neither a known name nor such a file.
        InputError: the hub cannot be reached; a column, an answer or an id is missing; an id is there twice.
    """
    if name in HUB:
        return _from_hub(name, HUB[name])
    source = Source(name, None, "", "--benchmark", "question", "")
    if not source.is_file:
        raise UsageError(
            f"There is no benchmark {name!r}.", f"Known: {', '.join(HUB)}; or give a .jsonl, .parquet or .csv file."
        )
    return _from_file(source)


def _from_hub(name: str, spec: HubBenchmark) -> Benchmark:
    import polars as pl

    hint = f"Download it where there is a hub, and give the file: --benchmark {name}.jsonl (docs/evaluation.md)."
    source = Source(spec.dataset, spec.subset, spec.split, "--benchmark", "question", hint)
    frame = read_frame(source)
    columns = frame.collect_schema().names()
    for column in (spec.question, spec.reference, spec.id_):
        if column is not None and column.partition(".")[0] not in columns:
            raise InputError(
                f"{spec.dataset} has changed: it has no column {column!r} (it has {', '.join(columns)}).", hint
            )
    if spec.filter_ is not None:
        frame = frame.filter(pl.sql_expr(spec.filter_))
    wanted = [cell(spec.question).alias("question"), cell(spec.reference).alias("reference")]
    ids = [pl.lit(None).alias("id") if spec.id_ is None else pl.col(spec.id_).alias("id")]
    rows = collect(source, frame.select(*wanted, *ids)).rows()
    if spec.id_ is None:
        # Without ids a question is known by its text, so a copy is not another question.
        rows = list({as_question(question): (question, *rest) for question, *rest in reversed(rows)}.values())[::-1]
    if spec.draw is not None:
        order = np.random.default_rng(_DRAW_SEED).permutation(len(rows))[: spec.draw]
        rows = [rows[i] for i in sorted(order)]
    return _build(name, rows, code=spec.code, integers=spec.integers)


def _from_file(source: Source) -> Benchmark:
    import polars as pl

    frame = read_frame(source)
    columns = frame.collect_schema().names()
    found = {role: next((name for name in names if name in columns), None) for role, names in _NAMES.items()}
    if found["question"] is None:
        raise _no_column(source.name, "question", columns)
    reference = found["tests"] or found["answer"]
    if reference is None:
        raise _no_column(source.name, "answer", columns)
    id_ = pl.lit(None) if found["id"] is None else pl.col(found["id"])
    wanted = (pl.col(found["question"]).alias("q"), pl.col(reference).alias("r"), id_.alias("i"))
    rows = collect(source, frame.select(*wanted)).rows()
    return _build(source.name, rows, code=found["tests"] is not None, integers=False)


def _no_column(source: str, role: str, columns: Sequence[str]) -> InputError:
    wanted = f"{role!r} (or {', '.join(map(repr, _NAMES[role][1:]))})"
    if role == "answer":
        wanted += ", and no 'tests'"
    return InputError(f"{source} has no column {wanted}; it has {', '.join(columns)}.", "Rename the column.")


def _build(name: str, rows: Sequence[tuple[Any, ...]], *, code: bool, integers: bool) -> Benchmark:
    if not rows:
        raise InputError(f"The benchmark {name} holds no question.", "Give a file with one row a question.")
    questions: dict[str, Question] = {}
    for index, (question, reference, id_) in enumerate(rows):
        text = as_question(question)
        if not text:
            raise InputError(f"Row {index} of {name} has no question.", "Drop the row, or fill it in.")
        answer = as_tests(reference) if code else as_answer(reference, integers=integers)
        if not answer:
            what = "tests" if code else "answer"
            raise InputError(f"Row {index} of {name} has no {what}.", "Drop the row, or fill it in.")
        key = _hash(text) if id_ is None else str(id_)
        if key in questions:
            what = "question" if id_ is None else f"id {key!r}"
            raise InputError(
                f"{name} has the same {what} twice, the second time in row {index}.", "Drop one, or give each its own."
            )
        questions[key] = Question(key, text, answer)
    return Benchmark(Path(name).stem if Path(name).suffix else name, code, tuple(questions.values()))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
