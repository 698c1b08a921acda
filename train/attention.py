"""Attention and norm for Megatron's local layer spec, whose own need s x s scores and refuse sequence parallelism."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from . import mcore


class CausalAttention(mcore.MegatronModule):
    """Causal grouped-query attention through torch's SDPA, which never holds the scores where a fused kernel exists.

    Sequences are padded on the right, so causality alone keeps every real token from seeing padding: there is no mask.
    """

    def __init__(self, config: mcore.TransformerConfig, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(self, query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, *_: Any, **__: Any) -> Tensor:
        """Heads' outputs side by side, [S, B, N * D]."""
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_SBGD, value_SBGD))
        out_BNSD = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=True
        )
        return out_BNSD.permute(2, 0, 1, 3).flatten(2)


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm that tells Megatron to sum its gradient over the ranks of sequence parallelism."""

    def __init__(self, config: mcore.TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
