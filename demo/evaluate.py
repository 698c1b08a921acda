"""Pass@1 on held-out problems, with the engine that `generate` uses, and the intervals that a claim needs."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from ..stages.generate.engine import Request, Sampling
from .task import MAX_NEW_TOKENS, Problem, grade

_Z = NormalDist().inv_cdf(0.975)
_GREEDY = 1e-6
"""A temperature at which the likeliest token has all the mass."""
_RESAMPLES = 2000


@dataclass(frozen=True)
class Result:
    """Verdicts on the same problems in the same order, sampled at temperature 1 and greedily."""

    sampled: list[bool]
    greedy: list[bool]


def evaluate(folder: Path, problems: Sequence[Problem], seed: int) -> Result:
    """One response a problem and kind of decoding."""
    from transformers import AutoTokenizer

    from ..stages.generate.transformers_engine import TransformersEngine

    tokenizer = AutoTokenizer.from_pretrained(folder)
    engine = TransformersEngine(str(folder), "float32", batch_size=256)
    # The id seeds a response's random stream: a problem has the same one for every model.
    requests = {
        f"{seed:08x}{i:024x}": (problem, tuple(tokenizer(problem.prompt)["input_ids"]))
        for i, problem in enumerate(problems)
    }

    def verdicts(temperature: float) -> list[bool]:
        sampling = Sampling(MAX_NEW_TOKENS, temperature, 1.0, frozenset([tokenizer.eos_token_id]))
        right = {
            response.trajectory_id: grade(
                tokenizer.decode(response.ids_T, skip_special_tokens=True), requests[response.trajectory_id][0].answer
            )
            for response in engine.generate([Request(id_, ids) for id_, (_, ids) in requests.items()], sampling)
        }
        return [right[id_] for id_ in requests]

    return Result(verdicts(1.0), verdicts(_GREEDY))


def wilson(verdicts: Sequence[bool]) -> tuple[float, float, float]:
    """Share of True and its 95 % interval (Wilson, 1927)."""
    n, p = len(verdicts), sum(verdicts) / len(verdicts)
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return p, centre - half, centre + half


def gain(after: Sequence[bool], before: Sequence[bool]) -> tuple[float, float, float]:
    """Difference of two Pass@1 on the same problems, and its 95 % interval: a paired bootstrap over problems."""
    differences = [a - b for a, b in zip(after, before, strict=True)]
    rng = random.Random(0)
    means = sorted(sum(rng.choices(differences, k=len(differences))) for _ in range(_RESAMPLES))
    n = len(differences)
    return sum(differences) / n, means[int(0.025 * _RESAMPLES)] / n, means[int(0.975 * _RESAMPLES)] / n
