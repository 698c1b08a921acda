# pyright: strict, reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Hugging Face's weights and Megatron's: names, fused projections, slices of tensor parallelism. Pure.

Megatron keeps query, key and value in one matrix, group by group ([q of group 0, k of 0, v of 0, q of group 1, ...]),
and gate and up projection in another, and splits both over the tensor-parallel ranks so that a rank has whole groups
and matching halves.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from ..store.architecture import Architecture
from ..store.model import weight_files

_IN_LAYER = {
    "input_layernorm.weight": ["input_layernorm.weight"],
    "pre_mlp_layernorm.weight": ["post_attention_layernorm.weight"],
    "self_attention.linear_qkv.weight": [f"self_attn.{x}_proj.weight" for x in "qkv"],
    "self_attention.linear_qkv.bias": [f"self_attn.{x}_proj.bias" for x in "qkv"],
    "self_attention.q_layernorm.weight": ["self_attn.q_norm.weight"],
    "self_attention.k_layernorm.weight": ["self_attn.k_norm.weight"],
    "self_attention.linear_proj.weight": ["self_attn.o_proj.weight"],
    "mlp.linear_fc1.weight": ["mlp.gate_proj.weight", "mlp.up_proj.weight"],
    "mlp.linear_fc2.weight": ["mlp.down_proj.weight"],
}


def hf_names(name: str, first_layer: int, tied: bool) -> list[str]:
    """The Hugging Face weights, in order, that make up one parameter of Megatron's GPTModel (local spec).

    Args:
        name: as in `GPTModel.named_parameters()`; layers are numbered from 0 in each pipeline stage.
        first_layer: number of the stage's first layer in the whole model.
        tied: the head is the embedding.
    """
    match = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", name)
    if match:
        layer = first_layer + int(match[1])
        return [f"model.layers.{layer}.{tail}" for tail in _IN_LAYER[match[2]]]
    return {
        "embedding.word_embeddings.weight": ["model.embed_tokens.weight"],
        "decoder.final_layernorm.weight": ["model.norm.weight"],
        "output_layer.weight": ["model.embed_tokens.weight" if tied else "lm_head.weight"],
    }[name]


def fuse(name: str, parts: Sequence[Tensor], arch: Architecture) -> Tensor:
    """One Megatron parameter, unsplit, from its Hugging Face weights."""
    if "linear_qkv" in name:
        grouped = [part.reshape(arch.groups, -1, *part.shape[1:]) for part in parts]
        return torch.cat(grouped, 1).flatten(0, 1)
    return torch.cat(list(parts)) if len(parts) > 1 else parts[0]


def unfuse(name: str, whole: Tensor, arch: Architecture) -> list[Tensor]:
    """The inverse of `fuse`."""
    if "linear_qkv" in name:
        queries = arch.heads // arch.groups * arch.head_dim
        grouped = whole.reshape(arch.groups, queries + 2 * arch.head_dim, *whole.shape[1:])
        parts = grouped.split([queries, arch.head_dim, arch.head_dim], 1)
        return [part.flatten(0, 1).contiguous() for part in parts]
    if "linear_fc1" in name:
        return [part.contiguous() for part in whole.chunk(2)]
    return [whole]


def padded_vocabulary(arch: Architecture, ranks: int) -> int:
    """Rows of embedding and head so that every tensor-parallel rank has equally many."""
    return -(-arch.vocabulary // ranks) * ranks


def shard(name: str, whole: Tensor, arch: Architecture, rank: int, ranks: int) -> Tensor:
    """One tensor-parallel rank's slice of a parameter; rows that pad the vocabulary are zero."""
    axis = _split_axis(name)
    if axis is None or ranks == 1:
        return whole
    if _has_vocabulary(name):
        padding = padded_vocabulary(arch, ranks) - len(whole)
        whole = torch.nn.functional.pad(whole, (0, 0, 0, padding))
    if "linear_fc1" in name:
        return whole.reshape(2, -1, whole.shape[1]).chunk(ranks, 1)[rank].flatten(0, 1)
    return whole.chunk(ranks, axis)[rank]


def unshard(name: str, slices: Sequence[Tensor], arch: Architecture) -> Tensor:
    """The inverse of `shard`."""
    axis = _split_axis(name)
    if axis is None or len(slices) == 1:
        return slices[0]
    if "linear_fc1" in name:
        return torch.cat([part.reshape(2, -1, part.shape[1]) for part in slices], 1).flatten(0, 1)
    whole = torch.cat(list(slices), axis)
    return whole[: arch.vocabulary] if _has_vocabulary(name) else whole


def is_split(name: str) -> bool:
    """Whether tensor parallelism splits a parameter; otherwise every rank has all of it."""
    return _split_axis(name) is not None


def _split_axis(name: str) -> int | None:
    if "layernorm" in name:
        return None
    return 1 if name.endswith(("linear_proj.weight", "linear_fc2.weight")) else 0


def _has_vocabulary(name: str) -> bool:
    return name in ("embedding.word_embeddings.weight", "output_layer.weight")


class WeightFiles:
    """The safetensors of a Hugging Face folder, one file or several, read a tensor at a time."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            InputError: there are none, or it is not clear which.
        """
        self.folder = folder
        self._paths = weight_files(folder)
        self._files: dict[str, Any] = {}

    def __enter__(self) -> "WeightFiles":
        from safetensors import safe_open

        for path in self._paths:
            file: Any = safe_open(path, framework="pt")
            self._files |= dict.fromkeys(file.keys(), file)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        # safetensors maps the files, and unmaps them when nothing refers to them any more.
        self._files.clear()

    def tensor(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name)
