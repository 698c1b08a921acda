# pyright: strict
"""What the figures of several seeds say about an arm, and about its difference to another. Pure.

Two sources of chance, and an interval for each; neither holds for both:

- over seeds (prompts' order, sampling, teacher, training): Student's t over the S means. It holds for training again
  with other seeds, on the same questions.
- over questions: the bootstrap of `eval` over the Q paired differences, each averaged over seeds. It holds for other
  questions of the same kind, answered by these very models.

Shapes: S seeds, Q questions.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..eval.estimate import Difference, Interval, paired_difference


@dataclass(frozen=True)
class SeedGain:
    """A minus B over paired seeds."""

    gain: Interval
    """NaN bounds for one seed."""
    p: float
    """Two-sided paired t-test; NaN for one seed."""


def t_interval(values_S: NDArray[np.float64]) -> Interval:
    """Mean over seeds with Student's 95 % interval; NaN bounds for one seed, which does not tell."""
    mean, half = float(values_S.mean()), _t_half(values_S)
    return Interval(mean, mean - half, mean + half)


def _t_half(values_S: NDArray[np.float64]) -> float:
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    count = len(values_S)
    if count < 2:
        return math.nan
    return float(stdtrit(count - 1, 0.975)) * float(values_S.std(ddof=1)) / math.sqrt(count)


def paired_by_seed(a_S: NDArray[np.float64], b_S: NDArray[np.float64]) -> SeedGain:
    """The mean difference of two arms that share their seeds, and the paired t-test of its being none."""
    from scipy.special import stdtr  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    differences_S = a_S - b_S
    gain, count = t_interval(differences_S), len(differences_S)
    if count < 2:
        return SeedGain(gain, math.nan)
    error = float(differences_S.std(ddof=1)) / math.sqrt(count)
    if error == 0:
        return SeedGain(gain, 1.0 if gain.value == 0 else 0.0)
    return SeedGain(gain, 2 * float(stdtr(count - 1, -abs(gain.value) / error)))


def paired_by_question(a_SQ: NDArray[np.float64], b_SQ: NDArray[np.float64]) -> Difference:
    """The difference pooled over seeds and questions. A question is one cluster: all its seeds are drawn together,
    since a question that is easy under one seed is so under the others."""
    return paired_difference(a_SQ.mean(axis=0), b_SQ.mean(axis=0))
