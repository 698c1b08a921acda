# pyright: strict
"""What each global batch needs to know about all of its tokens before the first forward pass.

Every rank holds the whole batch's masks, so these facts are computed everywhere instead of communicated.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..method.objectives.record import Anchored, DividedBy


@dataclass(frozen=True)
class BatchFacts:
    """Sums over the tokens of one global batch."""

    audited_tokens: int
    unaudited_tokens: int
    """Response tokens outside every audited chunk: the KL anchor's."""
    anchored_tokens: int
    """Tokens that are held to a frozen model, if there is one."""
    mean_weight: float
    """Mean pi_teacher over the audited tokens, before centring; 0 where there is none."""
    baseline: float
    """What is subtracted from every audited token's weight."""
    normaliser: float
    """What all terms of the loss are divided by."""


def batch_facts(
    loss_weight: npt.NDArray[np.float32],
    audited: npt.NDArray[np.bool_],
    response: npt.NDArray[np.bool_],
    *,
    centre: Literal["none", "batch_mean"],
    normalise: Literal["audited_tokens", "sum"],
    anchored: Anchored = "unaudited",
    divided_by: DividedBy = "tokens",
) -> BatchFacts:
    """The facts of a global batch, from the flat arrays of all its tokens.

    Where the weights are shares of a likelihood (draft), their sum over the tokens is what the loss is divided by.
    Where the whole response is anchored and nothing is weighted (opd), its tokens are what the loss is divided by.
    Otherwise a batch without any audited token has the normaliser 1: its gradient is then that of the plain sum of the
    KL terms, which only clipping bounds, but there is no audited token to relate it to.
    """
    count = int(audited.sum())
    unaudited = int((response & ~audited).sum())
    anchored_tokens = unaudited if anchored == "unaudited" else int(response.sum())
    if divided_by == "weights":
        divisor = float(loss_weight[audited].sum(dtype=np.float64)) or 1.0
    else:
        divisor = max(1, count if count or anchored == "unaudited" else anchored_tokens)
    mean = float(loss_weight[audited].mean(dtype=np.float64)) if count else 0.0
    return BatchFacts(
        audited_tokens=count,
        unaudited_tokens=unaudited,
        anchored_tokens=anchored_tokens,
        mean_weight=mean,
        baseline=mean if centre == "batch_mean" else 0.0,
        normaliser=divisor if normalise == "audited_tokens" else 1,
    )
