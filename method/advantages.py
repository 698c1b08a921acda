# pyright: strict
"""Group-normalised rewards (GRPO, Shao et al. 2024, arXiv 2402.03300, section 4.1.2). Pure."""

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-4
"""Added to the deviation, as TRL does."""


def advantages(reward_G: NDArray[np.floating], group_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much better than its group each sample is, in standard deviations.

        (r - mean r) / (std r + 1e-4)

    with the sample standard deviation. A group of equal rewards, and so a group of one, has nothing to say: 0.

    Args:
        reward_G: Rewards of G samples.
        group_ids: The group of each sample [G], any numbers.
    """
    rewards_G = reward_G.astype(np.float64)
    inverse: NDArray[np.intp]
    _, inverse, counts = np.unique(group_ids, return_inverse=True, return_counts=True)
    centred_G = rewards_G - (np.bincount(inverse, weights=rewards_G) / counts)[inverse]
    squares = np.bincount(inverse, weights=centred_G**2)
    deviation = np.sqrt(squares / np.maximum(counts - 1, 1))
    lowest, highest = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
    np.minimum.at(lowest, inverse, rewards_G)
    np.maximum.at(highest, inverse, rewards_G)
    # Rounding of the mean must not make a signal of rewards that are all the same.
    return np.where((lowest == highest)[inverse], 0.0, centred_G / (deviation[inverse] + EPSILON))
