"""Attention as the trainer calls it: which kernel it gets, what a length costs, what a new length costs."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from .sizes import Sizes
from .timing import DEVICE, peak, seconds, wait


def _heads(sizes: Sizes, tokens: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    heads, groups, size = sizes.heads
    shapes = [(1, heads, tokens, size), (1, groups, tokens, size), (1, groups, tokens, size)]
    query, key, value = (torch.randn(shape, device=DEVICE, dtype=dtype, requires_grad=True) for shape in shapes)
    return query, key, value


def _backward(query: Tensor, key: Tensor, value: Tensor) -> None:
    scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).sum().backward()


def check(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Forward and backward pass of one layer, in bf16 and in float32, and eight lengths that were not seen before."""
    heads, _, size = sizes.heads
    names = {int(backend.value): name for name, backend in SDPBackend.__members__.items()}
    for dtype in (torch.bfloat16, torch.float32):
        for tokens in sizes.lengths:
            row: dict[str, Any] = {"dtype": str(dtype).removeprefix("torch."), "tokens": tokens}
            tensors = _heads(sizes, tokens, dtype)
            try:
                choice: Any = torch._fused_sdp_choice(*tensors, is_causal=True, enable_gqa=True)  # pyright: ignore[reportPrivateImportUsage]
                row["backend"] = names[int(choice)]
                row |= peak(lambda tensors=tensors: _backward(*tensors))
                taken = seconds(lambda tensors=tensors: _backward(*tensors), 3)
                # A causal half of 4 T^2 N D forward, and two and a half times that backward.
                row |= {"ms": 1e3 * taken, "tflops": 7e-12 * tokens**2 * heads * size / taken}
            except torch.OutOfMemoryError:
                row["out_of_memory"] = True
            yield row
    first: list[float] = []
    for tokens in range(1000, 1000 + 17 * 8, 17):
        tensors = _heads(sizes, tokens, torch.bfloat16)
        wait()
        started = time.perf_counter()
        _backward(*tensors)
        wait()
        first.append(round(1e3 * (time.perf_counter() - started), 1))
    yield {"new_lengths_ms": first}
