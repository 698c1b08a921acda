"""Pass@1 on held-out problems, with the engine that `generate` uses, and the intervals that a claim needs.

It is kept in the run directory as `omniopd eval` keeps its own, so that whatever shows a run shows it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..eval.estimate import Interval, paired_difference
from ..eval.results import is_whole
from ..eval.settings import GREEDY
from ..stages.generate.engine import Request, Response, Sampling
from ..stages.generate.repetition import repetition
from ..store.evals import eval_of_run
from ..store.layout import RunDir
from ..store.model import weights_hash
from .tasks.task import SUMS, Problem, Task

_GRADER = "task"
"""Of the verdicts: the task's own rule."""


@dataclass(frozen=True)
class Result:
    """Verdicts on the same problems in the same order, sampled at temperature 1 and greedily."""

    sampled: list[bool]
    greedy: list[bool]
    responses: dict[str, list[dict[str, Any]]] = field(default_factory=dict[str, Any], compare=False, repr=False)
    """By benchmark, with their verdicts: the columns of both tables of store/evals.py."""


def evaluate(folder: Path, problems: Sequence[Problem], seed: int, task: Task = SUMS) -> Result:
    """One response a problem and kind of decoding."""
    from transformers import AutoTokenizer

    from ..stages.generate.engines.transformers_engine import TransformersEngine

    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = TransformersEngine(str(folder), "float32", batch_size=256)
    # The id seeds a response's random stream: a problem has the same one for every model.
    requests = {
        f"{seed:08x}{i:024x}": (problem, tuple(tokenizer(problem.prompt)["input_ids"]))
        for i, problem in enumerate(problems)
    }

    policy = weights_hash(folder)

    def row(response: Response) -> dict[str, Any]:
        problem, _ = requests[response.trajectory_id]
        text = tokenizer.decode(response.ids_T, skip_special_tokens=True)
        right = task.grade(text, problem.answer)
        return {
            "question_id": response.trajectory_id, "sample_index": 0, "question": problem.question,
            "prompt_text": problem.prompt, "response_text": text, "response_tokens": len(response.ids_T),
            "finish_reason": response.finish_reason, "repetition": repetition(response.ids_T), "policy": policy,
            "engine": engine.name, "grader": _GRADER, "correct": right, "reason": "right" if right else "wrong",
            "reference": str(problem.answer),
        }  # fmt: skip

    def answers(temperature: float) -> list[dict[str, Any]]:
        sampling = Sampling(task.max_new_tokens, temperature, 1.0, frozenset([tokenizer.eos_token_id]))
        rows = map(row, engine.generate([Request(id_, ids) for id_, (_, ids) in requests.items()], sampling))
        by_id = {row["question_id"]: row for row in rows}
        return [by_id[id_] for id_ in requests]

    sampled, greedy = answers(1.0), answers(GREEDY)
    return Result(
        [row["correct"] for row in sampled], [row["correct"] for row in greedy],
        {"held-out, T = 1": sampled, "held-out, greedy": greedy},
    )  # fmt: skip


def keep(run: RunDir, rounds: int, result: Result) -> None:
    """Store how good a run's policy is after some rounds, unless it is there already."""
    import pyarrow as pa

    for benchmark, rows in result.responses.items():
        folder = eval_of_run(run, rounds, benchmark)
        if not is_whole(folder):
            for table in (folder.responses(), folder.verdicts(_GRADER)):
                table.replace([pa.Table.from_pylist(rows, schema=table.spec.schema)], {"benchmark": benchmark})


def gain(after: Sequence[bool], before: Sequence[bool]) -> Interval:
    """Difference of two Pass@1 on the same problems, and its 95 % interval."""
    after_Q, before_Q = (np.array(verdicts, dtype=np.float64) for verdicts in (after, before))
    return paired_difference(after_Q, before_Q).gain
