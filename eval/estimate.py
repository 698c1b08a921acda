# pyright: strict
"""What verdicts on a benchmark say about a model, and how sure that is. Pure.

Shapes: Q questions, S samples of each. All intervals are 95 %.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_Z = NormalDist().inv_cdf(0.975)
_RESAMPLES = 10_000
_FLIPS = 100_000
_MOST_EXACT = 16
"""Up to this many questions that differ, every sign pattern is enumerated (65,536 of them)."""
_SEED = 20_260_601
"""Of the resampling: the same verdicts give the same interval every time."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


def pass_at_k(samples: int, right_Q: NDArray[np.int64], k: int) -> float:
    """Mean over questions of the chance that of k samples at least one is right.

    Unbiased for k <= samples: 1 - C(n - c, k) / C(n, k) for each question (Chen et al. 2021, arXiv 2107.03374, Eq. 1),
    as a product, since the binomials overflow.

    Args:
        samples: n, samples of each question.
        right_Q: c, how many of a question's samples are right.
        k: At most n.

    Raises:
        ValueError: k is not in [1, n].
    """
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} cannot be estimated from {samples} samples")
    wrong_Q = samples - right_Q
    # C(n - c, k) / C(n, k) = prod over i < k of (n - c - i) / (n - i); a factor below zero comes after one that is 0.
    missed_Q = np.ones(len(right_Q))
    for i in range(k):
        missed_Q *= np.maximum(wrong_Q - i, 0) / (samples - i)
    return float(1.0 - missed_Q.mean())


def pass_at_1(verdicts_QS: NDArray[np.bool_]) -> Interval:
    """Mean over samples and questions, with the interval for the population that the questions were drawn from.

    The bootstrap resamples questions, each with all its samples. A question's mean already varies by its samples, so
    drawing these again too would count that noise twice (Davison & Hinkley 1997, §3.8). Where all samples of all
    questions agree, resampling shows no variation at all; Wilson's interval over questions stands in then.
    """
    means_Q = verdicts_QS.mean(axis=1)
    if bool(np.all(means_Q == 0.0)) or bool(np.all(means_Q == 1.0)):
        return wilson(int(means_Q.sum()), len(means_Q))
    return bootstrap_mean(means_Q)


def bootstrap_mean(values_Q: NDArray[np.float64]) -> Interval:
    """Mean, and the percentile bootstrap interval over its units."""
    count = len(values_Q)
    rng = np.random.default_rng(_SEED)
    resampled_R = np.concatenate(
        [
            values_Q[rng.integers(0, count, size=(min(1000, _RESAMPLES - first), count))].mean(axis=1)
            for first in range(0, _RESAMPLES, 1000)
        ]
    )
    low, high = np.quantile(resampled_R, [0.025, 0.975])
    return Interval(float(values_Q.mean()), float(low), float(high))


def repeat_error(verdicts_QS: NDArray[np.bool_]) -> float:
    """Standard error of Pass@1 if the same questions were sampled again; NaN for one sample, which does not tell."""
    questions, samples = verdicts_QS.shape
    if samples == 1:
        return math.nan
    return float(np.sqrt((verdicts_QS.var(axis=1, ddof=1) / samples).sum()) / questions)


def wilson(right: int, count: int) -> Interval:
    """Share of right verdicts and its interval (Wilson, 1927): for one verdict a unit."""
    n, p = count, right / count
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Difference:
    """Pass@1 of A minus that of B on the same questions."""

    gain: Interval
    p: float
    """Two-sided, of the hypothesis that on no question it matters which of the two answers."""
    exact: bool
    """Whether all sign patterns were counted, or 100,000 drawn."""


def paired_difference(a_Q: NDArray[np.float64], b_Q: NDArray[np.float64]) -> Difference:
    """Compare two models by their mean on each question.

    The interval is the percentile bootstrap over questions of the paired differences; p comes from flipping their
    signs (Fisher's randomisation test). With one sample a question that is McNemar's exact test, but it also takes
    means of several samples.
    """
    differences_Q = a_Q - b_Q
    gain = bootstrap_mean(differences_Q)
    nonzero_D = differences_Q[differences_Q != 0]
    if len(nonzero_D) <= _MOST_EXACT:
        return Difference(gain, _p_exact(nonzero_D), exact=True)
    return Difference(gain, _p_drawn(nonzero_D), exact=False)


# Sums of the same differences in another order may differ in the last bits.
_TIE = 1e-9


def _p_exact(differences_D: NDArray[np.float64]) -> float:
    sums = np.zeros(1)
    for difference in differences_D:
        sums = np.concatenate([sums + difference, sums - difference])
    return np.count_nonzero(np.abs(sums) >= abs(differences_D.sum()) - _TIE) / len(sums)


def _p_drawn(differences_D: NDArray[np.float64]) -> float:
    rng = np.random.default_rng(_SEED)
    threshold = abs(differences_D.sum()) - _TIE
    as_far = 0
    for _ in range(0, _FLIPS, 1000):
        signs_RD = rng.integers(0, 2, size=(1000, len(differences_D))) * 2 - 1
        as_far += int((np.abs(signs_RD @ differences_D) >= threshold).sum())
    # The observed pattern is one of them, so p is never 0 (Phipson & Smyth, 2010).
    return (as_far + 1) / (_FLIPS + 1)
