"""What a student makes of tokens that are there already: one teacher-forced pass, for any stage.

The pass is a causal forward of the whole sequence without a cache. Logits, log-softmax and entropy are formed in
float32, a few hundred rows at a time, as the trainer's loss forms them; so memory grows with the hidden states of a
batch, not with its logits (20,000 tokens x 152,000 words would be 12 GB).

Shapes: T tokens read, B sequences of a batch, S the longest of them, R rows of logits, V words, H hidden.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..store.config import Config

_TOKENS_AT_A_TIME = 16384
"""Tokens, padding included, in one forward pass, unless a single sequence has more."""

_ROWS_OF_LOGITS = 256
"""Rows of logits held at a time."""


@dataclass(frozen=True)
class Read:
    """Some tokens, which a student is to read behind others."""

    before: Sequence[int]
    """At least one token."""
    ids: Sequence[int]

    def __len__(self) -> int:
        return len(self.before) + len(self.ids)


@dataclass(frozen=True)
class Likelihood:
    """What the student thinks of T tokens."""

    logprobs_T: NDArray[np.float32]
    """Of each token, nats."""
    entropies_T: NDArray[np.float32]
    """Of the whole distribution there (Eq. 6), nats."""
    top_logprobs_T: NDArray[np.float32]
    """Of the likeliest token there, nats."""
    ranks_T: NDArray[np.int32]
    """How many tokens are likelier."""


class Student:
    """A student that reads."""

    def __init__(self, folder: str, precision: str) -> None:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self._model, self._device = load_model(folder, dtype)
        self.name = f"transformers {transformers.__version__} {str(dtype).removeprefix('torch.')}"

    def close(self) -> None:
        del self._model
        torch.cuda.empty_cache()

    def read(self, wanted: Sequence[Read]) -> Iterator[tuple[int, Likelihood]]:
        """The number of each sequence and what it makes of its tokens, shortest first."""
        ordered = sorted(range(len(wanted)), key=lambda i: len(wanted[i]))
        first = 0
        while first < len(ordered):
            last = first + 1
            while last < len(ordered) and len(wanted[ordered[last]]) * (last + 1 - first) <= _TOKENS_AT_A_TIME:
                last += 1
            batch = ordered[first:last]
            yield from zip(batch, self._batch([wanted[i] for i in batch]), strict=True)
            first = last

    @torch.inference_mode()
    def _batch(self, wanted: Sequence[Read]) -> list[Likelihood]:
        # Padded on the right: under causal attention no token sees the padding, and no mask is needed.
        ids_BS = torch.zeros(len(wanted), len(wanted[-1]), dtype=torch.long)
        for row, one in enumerate(wanted):
            ids_BS[row, : len(one)] = torch.tensor([*one.before, *one.ids])
        decoder = self._model.get_decoder()
        hidden_BSH = decoder(input_ids=ids_BS.to(self._device), use_cache=False).last_hidden_state
        # The row before a token predicts it.
        return [
            self._read(hidden_SH[len(one.before) - 1 : len(one) - 1], one.ids)
            for hidden_SH, one in zip(hidden_BSH, wanted, strict=True)
        ]

    def _read(self, hidden_TH: Tensor, ids: Sequence[int]) -> Likelihood:
        head = self._model.get_output_embeddings()
        assert isinstance(head, torch.nn.Linear)
        targets_T = torch.tensor(ids, dtype=torch.long, device=self._device)
        parts: list[tuple[Tensor, ...]] = []
        for hidden_RH, target_R in zip(hidden_TH.split(_ROWS_OF_LOGITS), targets_T.split(_ROWS_OF_LOGITS), strict=True):
            log_probs_RV, entropy_R = log_probs_and_entropy(_float32_product(hidden_RH, head.weight.t()))
            own_R1 = log_probs_RV.gather(1, target_R[:, None])
            parts.append((own_R1[:, 0], entropy_R, log_probs_RV.amax(1), (log_probs_RV > own_R1).sum(1).int()))
        return Likelihood(*(torch.cat(columns).cpu().numpy() for columns in zip(*parts, strict=True)))


def load_model(folder: str, dtype: torch.dtype) -> tuple[Any, torch.device]:
    """A model to read or sample with, and the device that it is on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    transformers.logging.disable_progress_bar()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention(device, dtype))
    return model.to(device).eval(), device


_REPEATED_HEADS = "omniopd_repeated_heads"
"""Name of an attention in transformers."""


def attention(device: torch.device, dtype: torch.dtype) -> str | None:
    """Which of transformers' attentions; None: its choice.

    In float32 CUDA has no kernel for grouped queries but the one that holds the scores, 17 GB a layer at 8,192 tokens
    (docs/gpu.md), and transformers takes it where there is no mask.
    """
    if device.type != "cuda" or dtype != torch.float32:
        return None
    AttentionInterface.register(_REPEATED_HEADS, _with_repeated_heads)
    AttentionMaskInterface.register(_REPEATED_HEADS, sdpa_mask)
    return _REPEATED_HEADS


def _with_repeated_heads(
    module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """transformers' `sdpa` with keys and values repeated for each query head, as its module need not know."""
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1) for tensor in (key, value))
    alone: Any = SimpleNamespace(is_causal=getattr(module, "is_causal", True))
    return sdpa_attention_forward(alone, query, key, value, *args, **kwargs)


def precision_of(config: Config) -> str:
    """The precision in which the trainer computes on this machine."""
    return config.train.on(cuda=torch.cuda.is_available(), bf16=has_bfloat16()).precision


def has_bfloat16() -> bool:
    """Whether there is a GPU that computes in bfloat16. Others emulate it, without fused attention."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def log_probs_and_entropy(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Raw log-probs [B, V] and full-vocabulary entropy [B] (Eq. 6), fp32, nats."""
    log_probs_BV = torch.log_softmax(logits_BV.float(), dim=-1)
    # entr(p) = -p log p, and 0 where p = 0: logits of -inf do not give NaN.
    return log_probs_BV, torch.special.entr(log_probs_BV.exp()).sum(dim=-1)


def _float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, without rounding the result to the inputs' dtype on the way."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
