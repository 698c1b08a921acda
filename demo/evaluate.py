"""Pass@1 on held-out problems, with the engine that `generate` uses, and the intervals that a claim needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..eval.estimate import Interval, paired_difference
from ..eval.settings import GREEDY
from ..stages.generate.engine import Request, Sampling
from .tasks.task import SUMS, Problem, Task


@dataclass(frozen=True)
class Result:
    """Verdicts on the same problems in the same order, sampled at temperature 1 and greedily."""

    sampled: list[bool]
    greedy: list[bool]


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

    def verdicts(temperature: float) -> list[bool]:
        sampling = Sampling(task.max_new_tokens, temperature, 1.0, frozenset([tokenizer.eos_token_id]))
        right = {
            response.trajectory_id: task.grade(
                tokenizer.decode(response.ids_T, skip_special_tokens=True), requests[response.trajectory_id][0].answer
            )
            for response in engine.generate([Request(id_, ids) for id_, (_, ids) in requests.items()], sampling)
        }
        return [right[id_] for id_ in requests]

    return Result(verdicts(1.0), verdicts(GREEDY))


def gain(after: Sequence[bool], before: Sequence[bool]) -> Interval:
    """Difference of two Pass@1 on the same problems, and its 95 % interval."""
    after_Q, before_Q = (np.array(verdicts, dtype=np.float64) for verdicts in (after, before))
    return paired_difference(after_Q, before_Q).gain
