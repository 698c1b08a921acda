"""What a finished study leaves: the table as Parquet and as Markdown, and the picture. Read back from the runs."""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..store.studies import StudyDir
from .arms import REFERENCE, Choice, Equal, Kind
from .plot import plot
from .results import means_by_question, row
from .table import Row, markdown, summarise
from .task import Task


def write_report(study: StudyDir, kind: Kind, choice: Choice, tasks: Sequence[Task], equal: Equal) -> str:
    """Write all three. Returns the table as text, and where they are.

    Raises:
        InputError: an evaluation is not whole.
        TableError: a file is missing or damaged.
    """
    base = tasks[0].base
    table = study.results(kind)
    rows = list(_rows(tasks))
    table.replace(
        [pa.Table.from_pylist(rows, schema=table.spec.schema)],
        {"benchmark": base.eval.benchmark, "grader": tasks[0].grader, "samples": base.eval.samples},
    )
    after = {(task.arm.name, task.seed): _means(task, task.rounds) for task in tasks}
    before = {task.seed: _means(task, 0) for task in tasks if task.arm.name == REFERENCE}
    lines = summarise(rows, after, before)
    text = markdown(kind, lines, choice, rows, equal)
    path = study.path / f"{kind}.md"
    path.write_text(text, encoding="utf-8")
    picture = plot(kind, lines, rows, choice[0], base, study.path / f"{kind}.png")
    return f"{text}\n{path}, {picture}, {table.folder}"


def _rows(tasks: Sequence[Task]) -> Iterator[Row]:
    for task in tasks:
        for rounds in task.evaluated:
            yield row(task.study.path, task.run, task.arm, task.seed, rounds, task.evaluation(rounds), task.grader)


def _means(task: Task, rounds: int) -> NDArray[np.float64]:
    return means_by_question(task.evaluation(rounds), task.grader)
