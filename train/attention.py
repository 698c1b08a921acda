"""Attention and norm for Megatron's local layer spec, whose own need s x s scores and refuse sequence parallelism."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from . import mcore
from .data import context_pieces
from .mcore import parallel_state as mpu


class CausalAttention(mcore.MegatronModule):
    """Causal grouped-query attention through torch's SDPA, which never holds the scores where a fused kernel exists.

    Sequences are padded on the right, so causality alone keeps every real token from seeing padding: there is no mask.
    """

    def __init__(self, config: mcore.TransformerConfig, softmax_scale: float | None = None, **_: Any) -> None:
        super().__init__(config=config)
        self.softmax_scale = softmax_scale

    def forward(self, query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor, *_: Any, **__: Any) -> Tensor:
        """Heads' outputs side by side, [S, B, N * D]."""
        if mpu.get_context_parallel_world_size() > 1:
            return self._over_ranks(query_SBND, key_SBGD, value_SBGD)
        if _repeats_heads(query_SBND):
            heads = query_SBND.shape[2] // key_SBGD.shape[2]
            key_SBGD, value_SBGD = (tensor.repeat_interleave(heads, 2) for tensor in (key_SBGD, value_SBGD))
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query_SBND, key_SBGD, value_SBGD))
        out_BNSD = scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return out_BNSD.permute(2, 0, 1, 3).flatten(2)

    def _over_ranks(self, query_SBND: Tensor, key_SBGD: Tensor, value_SBGD: Tensor) -> Tensor:
        """Context parallelism: this rank's queries, two pieces of the sequence, against everybody's keys and values.

        The ranks' keys and values are gathered (Llama 3, arXiv 2407.21783, 3.3.2): grouped-query attention makes them
        small beside the queries, and one call of SDPA a piece does the rest.
        """
        ranks, rank = mpu.get_context_parallel_world_size(), mpu.get_context_parallel_rank()
        size = len(query_SBND) // 2
        heads = query_SBND.shape[2] // key_SBGD.shape[2]
        gathered = mcore.gather_from_sequence_parallel_region(
            torch.stack([key_SBGD, value_SBGD], 1), group=mpu.get_context_parallel_group()
        )
        # The ranks' pieces arrive as 0, 2n - 1, 1, 2n - 2, ...; here they are put in order.
        pieces = gathered.split(size)
        whole = torch.cat([pieces[2 * r] for r in range(ranks)] + [pieces[2 * r + 1] for r in reversed(range(ranks))])
        # A mask and unequal numbers of heads together would send SDPA to the kernel that holds the scores.
        key, value = whole.repeat_interleave(heads, 3).permute(1, 2, 3, 0, 4)
        outs: list[Tensor] = []
        for query, piece in zip(query_SBND.split(size), context_pieces(rank, ranks), strict=True):
            seen = (piece + 1) * size
            outs.append(
                scaled_dot_product_attention(
                    query.permute(1, 2, 0, 3), key[:, :, :seen], value[:, :, :seen],
                    attn_mask=causal_lower_right(size, seen), scale=self.softmax_scale,
                )
            )  # fmt: skip
        return torch.cat(outs, 2).permute(2, 0, 1, 3).flatten(2)


def _repeats_heads(query: Tensor) -> bool:
    """Whether keys and values are repeated for each query head: in float32 CUDA has no kernel for grouped queries but
    the one that holds the scores (at 8,192 tokens 17 GB a layer on an H100)."""
    return query.is_cuda and query.dtype == torch.float32


class RMSNorm(torch.nn.RMSNorm):
    """RMSNorm that tells Megatron to sum its gradient over the ranks of sequence parallelism."""

    def __init__(self, config: mcore.TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel  # pyright: ignore[reportAttributeAccessIssue]
