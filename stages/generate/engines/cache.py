"""A key-value cache whose step does not copy what is already there."""

from typing import Any

from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


def growing_cache(config: Any) -> DynamicCache:
    """The cache that fits a model's layers; those of full attention grow in buffers."""
    cache = DynamicCache(config=config)
    cache.layers = [_GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class _GrowingLayer(DynamicLayer):
    """Keys and values are views into buffers with room for more.

    transformers' own layer concatenates, so T steps move T^2 tokens; at 20,000 tokens that is most of the time.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self._key_buffer, self._value_buffer = self.keys, self.values
        assert self.keys is not None
        assert self.values is not None
        self._key_buffer, self.keys = _append(self._key_buffer, self.keys, key_states)
        self._value_buffer, self.values = _append(self._value_buffer, self.values, value_states)
        return self.keys, self.values


def _append(buffer: Tensor, seen: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """[B, heads, S, D] and [B, heads, N, D] -> [B, heads, S + N, D], a view into the buffer, which comes first.

    Where rows have left the batch, or the buffer is full, it is another one.
    """
    length = seen.shape[2] + new.shape[2]
    if buffer.shape[0] != seen.shape[0] or buffer.shape[2] < length:
        buffer = new.new_empty(*new.shape[:2], length + max(length // 2, 64), new.shape[3])
        buffer[:, :, : seen.shape[2]] = seen
    buffer[:, :, seen.shape[2] : length] = new
    return buffer, buffer[:, :, :length]
