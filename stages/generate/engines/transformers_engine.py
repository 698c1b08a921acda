"""The `transformers` engine: batched decoding with a KV cache, on a GPU or a CPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache

from ...likelihood import has_bfloat16, load_model, log_probs_and_entropy
from ..engine import Pulse, Request, Response, Sampling, check_fits, unheard
from .cache import growing_cache
from .sampling import sample, uniforms

_BATCH_SIZE = 64
"""Responses decoded together, unless the config says otherwise."""

_STEPS_OF_UNIFORMS = 64
"""Random numbers are drawn this many steps at a time."""


class TransformersEngine:
    """Decodes `batch_size` responses together; rows that have stopped leave the batch once they are its half."""

    def __init__(self, folder: str, dtype: str, batch_size: int | None) -> None:
        auto = torch.bfloat16 if has_bfloat16() else torch.float32
        precision = auto if dtype == "auto" else getattr(torch, dtype)
        self._model, self._device = load_model(folder, precision)
        self._batch_size = batch_size or _BATCH_SIZE
        self._context = int(self._model.config.max_position_embeddings)
        self.name = f"transformers {transformers.__version__} {str(precision).removeprefix('torch.')}"
        self.entropy_source = f"{self.name} decode"

    def close(self) -> None:
        del self._model
        torch.cuda.empty_cache()

    def generate(self, requests: Sequence[Request], sampling: Sampling, pulse: Pulse = unheard) -> Iterator[Response]:
        """Sample every request, prompts of like length together.

        Raises:
            InputError: a prompt does not fit the model's context.
        """
        if not requests:
            return
        check_fits(requests, self._context)
        ordered = sorted(requests, key=lambda request: len(request.prompt_ids))
        for first in range(0, len(ordered), self._batch_size):
            yield from self._decode(ordered[first : first + self._batch_size], sampling, pulse)

    @torch.inference_mode()
    def _decode(self, requests: Sequence[Request], sampling: Sampling, pulse: Pulse) -> Iterator[Response]:
        rows = [
            _Row(request, min(sampling.max_new_tokens, self._context - len(request.prompt_ids))) for request in requests
        ]
        batch = self._prefill(rows)
        stop_ids = torch.tensor(sorted(sampling.stop_ids), device=self._device)
        running = len(rows)
        for step in range(max(row.limit for row in rows)):
            log_probs_BV, entropies_B = log_probs_and_entropy(batch.logits_BV)
            uniforms_B = torch.from_numpy(np.array([row.uniform(step) for row in batch.rows])).to(self._device)
            tokens_B = sample(log_probs_BV, uniforms_B, sampling.temperature, sampling.top_p)
            logprobs_B = log_probs_BV.gather(1, tokens_B[:, None]).squeeze(1)
            stopped_B = torch.isin(tokens_B, stop_ids)
            # One transfer a step: float64 holds token ids exactly.
            columns = torch.stack([tokens_B.double(), logprobs_B.double(), entropies_B.double(), stopped_B.double()])
            for row, (token, logprob, entropy, stopped) in zip(batch.rows, columns.T.tolist(), strict=True):
                row.add(int(token), logprob, entropy, bool(stopped))
            live = [i for i, row in enumerate(batch.rows) if row.finish_reason is None]
            pulse(len(live), running)
            running = len(live)
            if not live:
                break
            if len(live) <= len(batch.rows) // 2:
                batch.keep(live)
                tokens_B = tokens_B[live]
            self._advance(batch, tokens_B)
        for row in rows:
            yield row.response()

    def _prefill(self, rows: list["_Row"]) -> "_Batch":
        """Read the prompts, padded on the left."""
        width = max(len(row.request.prompt_ids) for row in rows)
        ids_BS = torch.zeros(len(rows), width, dtype=torch.long)
        mask_BS = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids_BS[i, width - len(row.request.prompt_ids) :] = torch.tensor(row.request.prompt_ids)
            mask_BS[i, width - len(row.request.prompt_ids) :] = 1
        batch = _Batch(list(rows), growing_cache(self._model.config), mask_BS.to(self._device), not bool(mask_BS.all()))
        positions_BS = (batch.mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        self._forward(batch, ids_BS.to(self._device), positions_BS)
        return batch

    def _advance(self, batch: "_Batch", tokens_B: Tensor) -> None:
        """Read one more token of each row."""
        batch.mask_BS = torch.cat([batch.mask_BS, batch.mask_BS.new_ones(len(batch.rows), 1)], dim=1)
        positions_B1 = batch.mask_BS.sum(dim=1, keepdim=True) - 1
        self._forward(batch, tokens_B[:, None], positions_B1)

    def _forward(self, batch: "_Batch", ids_BS: Tensor, positions_BS: Tensor) -> None:
        output = self._model(
            # Without padding, causal attention needs no mask, and then no copy of the keys for grouped queries either.
            input_ids=ids_BS, attention_mask=batch.mask_BS if batch.padded else None, position_ids=positions_BS,
            past_key_values=batch.cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        batch.logits_BV = output.logits[:, -1]


@dataclass
class _Row:
    """A response as it grows."""

    request: Request
    limit: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    entropies: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self._stream = uniforms(self.request.trajectory_id)

    def uniform(self, step: int) -> float:
        if step % _STEPS_OF_UNIFORMS == 0:
            self._drawn = self._stream.random(_STEPS_OF_UNIFORMS)
        return self._drawn[step % _STEPS_OF_UNIFORMS]

    def add(self, token: int, logprob: float, entropy: float, stopped: bool) -> None:
        if self.finish_reason is None:
            self.ids.append(token)
            self.logprobs.append(logprob)
            self.entropies.append(entropy)
            if stopped or len(self.ids) == self.limit:
                self.finish_reason = "stop" if stopped else "length"

    def response(self) -> Response:
        assert self.finish_reason is not None
        return Response(
            self.request.trajectory_id, np.array(self.ids, dtype=np.int32), np.array(self.logprobs, dtype=np.float32),
            np.array(self.entropies, dtype=np.float32), self.finish_reason,
        )  # fmt: skip


@dataclass
class _Batch:
    """The rows that are still decoded, and the state of the model for them."""

    rows: list[_Row]
    cache: DynamicCache
    mask_BS: Tensor
    padded: bool
    logits_BV: Tensor = field(init=False)

    def keep(self, indices: list[int]) -> None:
        self.rows = [self.rows[i] for i in indices]
        index = torch.tensor(indices, device=self.mask_BS.device)
        self.cache.batch_select_indices(index)
        self.mask_BS = self.mask_BS[index]
