# pyright: strict
"""The best prior strength: Theorem 4.1(c) solved for alpha, over all chunks of a round. Pure.

With w = alpha / (N + alpha), an estimate is (1 - w) π_freq + w π̄, and its mean squared error against a target t is

    (1 - w)^2 mean(σ^2) / N + mean(((1 - w) (μ - t) + w (π̄ - t))^2),

a parabola in w. For t = μ, the theorem's own target, its minimum is alpha* = mean(σ^2) / mean((π̄ - μ)^2) for every N.

Shapes: C chunks, K trajectories, B bootstrap samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .compare import Estimate, estimate

_RESAMPLES = 2000


@dataclass(frozen=True)
class Evidence:
    """What is known of C chunks; each has two usable rollouts or more."""

    freq_C: NDArray[np.float64]
    """π_freq, the mean similarity."""
    var_C: NDArray[np.float64]
    """Sample variance of the similarities."""
    n_C: NDArray[np.int64]
    """Usable rollouts."""
    prior_C: NDArray[np.float64]
    trajectory_C: NDArray[np.int64]
    """Which trajectory a chunk is of, from 0."""


@dataclass(frozen=True)
class Optimum:
    """The alpha with the least mean squared error at N rollouts (infinite: ignore the rollouts), and what it gains."""

    alpha: Estimate
    mse_at_zero: float
    mse_at_config: float
    mse_at_optimum: float


def optimum(
    evidence: Evidence, target_C: NDArray[np.float64] | None, n: int, config_alpha: float, seed: int
) -> Optimum:
    """Minimise the error at n rollouts a chunk, against a known target or (None) against μ itself.

    μ is not known but through π_freq, whose own noise σ^2 / n is taken off every square it enters. Intervals by
    bootstrap over trajectories.
    """
    noise_C = evidence.var_C / evidence.n_C
    gap_C = (evidence.prior_C - evidence.freq_C) ** 2 - noise_C
    if target_C is None:
        cross_C, offset_C = np.zeros_like(gap_C), np.zeros_like(gap_C)
    else:
        off_C = evidence.freq_C - target_C
        cross_C = off_C * (evidence.prior_C - evidence.freq_C) + noise_C
        offset_C = off_C**2 - noise_C
    terms_C4 = np.stack([evidence.var_C / n, offset_C, cross_C, gap_C], axis=1)
    trajectories = int(evidence.trajectory_C.max()) + 1
    terms_K4 = np.zeros((trajectories, 4))
    np.add.at(terms_K4, evidence.trajectory_C, terms_C4)
    drawn_BK = np.random.default_rng(seed).multinomial(
        trajectories, np.full(trajectories, 1 / trajectories), _RESAMPLES
    )  # fmt: skip
    weights_BK = np.vstack([np.ones(trajectories), drawn_BK]).astype(np.float64)
    alpha_B = _best_alpha(weights_BK @ terms_K4, n)
    terms = terms_C4.mean(axis=0)
    return Optimum(
        _with_infinities(alpha_B), _mse(terms, 0.0, n), _mse(terms, config_alpha, n), _mse(terms, float(alpha_B[0]), n)
    )


def _best_alpha(terms_B4: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Minimum of the parabola [B], kept to w in [0, 1]; alpha is infinite at w = 1."""
    noise_B, _, cross_B, gap_B = terms_B4.T
    curvature_B = noise_B + gap_B
    with np.errstate(divide="ignore", invalid="ignore"):
        w_B = np.where(curvature_B > 0, (noise_B - cross_B) / curvature_B, np.where(noise_B > cross_B, 1.0, 0.0))
        w_B = np.clip(w_B, 0.0, 1.0)
        return np.where(w_B < 1, n * w_B / (1 - w_B), np.inf)


def _mse(terms: NDArray[np.float64], alpha: float, n: int) -> float:
    noise, offset, cross, gap = (float(term) for term in terms)
    w = 1.0 if np.isinf(alpha) else alpha / (n + alpha)
    return (1 - w) ** 2 * noise + offset + 2 * w * cross + w * w * gap


def _with_infinities(alpha_B: NDArray[np.float64]) -> Estimate:
    # An infinite alpha is a value like any other here, but not to the percentiles' interpolation.
    finite = estimate(np.minimum(alpha_B, 1e12))
    return Estimate(*(float("inf") if value > 1e9 else value for value in (finite.value, finite.low, finite.high)))
