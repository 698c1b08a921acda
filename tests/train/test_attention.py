"""Attention as CUDA gets it in float32 and over ranks, against the same attention written out."""

import pytest
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from omniopd.train import attention
from omniopd.train.attention import CausalAttention
from omniopd.train.mcore import TransformerConfig


def test_repeated_keys_and_values_give_what_grouped_queries_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.mpu, "get_context_parallel_world_size", lambda: 1)
    made = CausalAttention(TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4))
    query = torch.randn(6, 2, 4, 8, dtype=torch.float64)
    key, value = torch.randn(2, 6, 2, 2, 8, dtype=torch.float64)
    grouped = made(query, key, value)
    monkeypatch.setattr(attention, "_repeats_heads", lambda query: True)
    torch.testing.assert_close(made(query, key, value), grouped)


def test_a_late_piece_sees_all_before_it_and_itself_causally() -> None:
    size, piece = 3, 2
    seen = (piece + 1) * size
    query, (key, value) = torch.randn(1, 2, size, 8), torch.randn(2, 1, 2, seen, 8)
    mask = torch.ones(size, seen, dtype=torch.bool).tril(piece * size)
    torch.testing.assert_close(
        scaled_dot_product_attention(query, key, value, attn_mask=causal_lower_right(size, seen)),
        scaled_dot_product_attention(query, key, value, attn_mask=mask),
    )
