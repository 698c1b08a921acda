"""One decoding step on a batch of logits: entropy, log-prob and a token for each row. Pure."""

import numpy as np
import torch
from torch import Tensor


def log_probs_and_entropy(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Raw log-probs [B, V] and full-vocabulary entropy [B] (Eq. 6), fp32, nats."""
    log_probs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    # entr(p) = -p log p, and 0 where p = 0: logits of -inf do not give NaN.
    return log_probs_BV, torch.special.entr(log_probs_BV.exp()).sum(dim=-1)


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
