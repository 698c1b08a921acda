# pyright: strict
"""What each global batch needs to know about all of its tokens before the first forward pass.

Every rank holds the whole batch's masks, so these facts are computed everywhere instead of communicated.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class BatchFacts:
    """Sums over the tokens of one global batch."""

    audited_tokens: int
    unaudited_tokens: int
    """Response tokens outside every audited chunk: the KL anchor's."""
    mean_weight: float
    """Mean pi_teacher over the audited tokens, before centring; 0 where there is none."""
    baseline: float
    """What is subtracted from every audited token's weight."""
    normaliser: int
    """What both terms of Eq. 8 are divided by."""


def batch_facts(
    loss_weight: npt.NDArray[np.float32],
    audited: npt.NDArray[np.bool_],
    response: npt.NDArray[np.bool_],
    *,
    centre: Literal["none", "batch_mean"],
    normalise: Literal["audited_tokens", "sum"],
) -> BatchFacts:
    """The facts of a global batch, from the flat arrays of all its tokens.

    A batch without any audited token has the normaliser 1: its gradient is then that of the plain sum of the KL terms,
    which only clipping bounds, but there is no audited token to relate it to.
    """
    count = int(audited.sum())
    mean = float(loss_weight[audited].mean(dtype=np.float64)) if count else 0.0
    return BatchFacts(
        audited_tokens=count,
        unaudited_tokens=int((response & ~audited).sum()),
        mean_weight=mean,
        baseline=mean if centre == "batch_mean" else 0.0,
        normaliser=max(1, count) if normalise == "audited_tokens" else 1,
    )
