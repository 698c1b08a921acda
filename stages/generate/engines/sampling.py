"""A token for each row of a batch of log-probs. Pure."""

import numpy as np
import torch
from torch import Tensor


def sample(log_probs_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """Token of each row [B] by inversion of the distribution function at the row's own uniform number in [0, 1).

    A row's token depends on nothing but its own logits and its own random stream, so a trajectory comes out the same
    in whatever batch it is sampled.
    """
    probs_BV = torch.softmax(log_probs_BV.double() / temperature, dim=-1)
    if top_p < 1.0:
        probs_BV = _nucleus(probs_BV, top_p)
    cdf_BV = probs_BV.cumsum(dim=-1)
    targets_B = uniforms_B.to(cdf_BV) * cdf_BV[:, -1]
    tokens_B = torch.searchsorted(cdf_BV, targets_B[:, None], right=True).squeeze(1)
    return tokens_B.clamp_(max=probs_BV.shape[-1] - 1)


def _nucleus(probs_BV: Tensor, top_p: float) -> Tensor:
    """Zero all but the smallest set of tokens whose mass reaches top_p."""
    sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
    mass_before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    return torch.zeros_like(probs_BV).scatter(-1, order_BV, sorted_BV.masked_fill(mass_before_BV >= top_p, 0.0))


def uniforms(trajectory_id: str) -> np.random.Generator:
    """The random stream of a trajectory: a counter-based generator keyed by its id (128 bits of hex)."""
    return np.random.Generator(np.random.Philox(key=int(trajectory_id, 16)))
