# pyright: strict
"""Table 3: how far the frequentist and the Bayesian estimate are from the teacher's true probability. Pure.

Shapes: C chunks, R rollouts of each, K trajectories, B bootstrap samples, F sums.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SUBSETS = 20
"""Random choices of N of the R rollouts over which an estimate of N rollouts is averaged."""
_RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """One row of Table 3. The gains are paired: both estimators on the same chunks, rollouts and bootstrap samples."""

    mse_freq: Estimate
    mse_bayes: Estimate
    corr_freq: Estimate
    corr_bayes: Estimate
    mse_gain: Estimate
    """mse_freq - mse_bayes; above 0 the prior helps."""
    corr_gain: Estimate
    """corr_bayes - corr_freq; above 0 the prior helps."""


def compare(
    phi_CR: NDArray[np.float64], prior_C: NDArray[np.float64], true_C: NDArray[np.float64],
    trajectory_C: NDArray[np.int64], alpha: float, n: int, seed: int,
) -> Comparison:  # fmt: skip
    """Mean squared error and Pearson correlation with the true probability at n <= R rollouts.

    Chunks of one trajectory are not independent, so the bootstrap draws whole trajectories.

    Args:
        phi_CR: Similarities of each chunk's rollouts.
        true_C: The teacher's length-normalised probability of the chunk.
        trajectory_C: Which trajectory a chunk is of, from 0.
    """
    rng = np.random.default_rng(seed)
    freq_CS = means_of_subsets(phi_CR, n, rng)
    bayes_CS = (n * freq_CS + alpha * prior_C[:, None]) / (n + alpha)
    trajectories = int(trajectory_C.max()) + 1
    weights_BK = rng.multinomial(trajectories, np.full(trajectories, 1 / trajectories), _RESAMPLES).astype(np.float64)
    # The first row is the sample itself.
    weights_BK = np.vstack([np.ones(trajectories), weights_BK])
    mse_freq_B, corr_freq_B = _statistics(freq_CS, true_C, trajectory_C, weights_BK)
    mse_bayes_B, corr_bayes_B = _statistics(bayes_CS, true_C, trajectory_C, weights_BK)
    return Comparison(
        estimate(mse_freq_B), estimate(mse_bayes_B), estimate(corr_freq_B), estimate(corr_bayes_B),
        estimate(mse_freq_B - mse_bayes_B), estimate(corr_bayes_B - corr_freq_B),
    )  # fmt: skip


def means_of_subsets(phi_CR: NDArray[np.float64], n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """π_freq of random choices of n of the R rollouts [C, S]; all of them where n is R."""
    if n == phi_CR.shape[1]:
        return phi_CR.mean(axis=1, keepdims=True)
    return np.stack([rng.permuted(phi_CR, axis=1)[:, :n].mean(axis=1) for _ in range(_SUBSETS)], axis=1)


def _statistics(
    estimate_CS: NDArray[np.float64], true_C: NDArray[np.float64], trajectory_C: NDArray[np.int64],
    weights_BK: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # fmt: skip
    """MSE and Pearson correlation [B], from sums over each trajectory, weighted as the bootstrap drew it."""
    x, y = estimate_CS, np.broadcast_to(true_C[:, None], estimate_CS.shape)
    sums_CF = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y, (x - y) ** 2], axis=2).mean(axis=1)
    sums_KF = np.zeros((weights_BK.shape[1], sums_CF.shape[1]))
    np.add.at(sums_KF, trajectory_C, sums_CF)
    count_B, x_B, y_B, xx_B, yy_B, xy_B, error_B = (weights_BK @ sums_KF).T
    x_B, y_B, xx_B, yy_B, xy_B = (total / count_B for total in (x_B, y_B, xx_B, yy_B, xy_B))
    variances_B = (xx_B - x_B**2) * (yy_B - y_B**2)
    with np.errstate(invalid="ignore", divide="ignore"):
        corr_B = np.where(variances_B > 1e-18, (xy_B - x_B * y_B) / np.sqrt(np.maximum(variances_B, 0)), np.nan)
    return error_B / count_B, corr_B


def estimate(values_B: NDArray[np.float64]) -> Estimate:
    """The first value, with the percentiles of the others."""
    resampled = values_B[1:][np.isfinite(values_B[1:])]
    if not np.isfinite(values_B[0]) or len(resampled) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    low, high = np.percentile(resampled, _INTERVAL)
    return Estimate(float(values_B[0]), float(low), float(high))
