"""The true probability of a chunk, from a teacher whose weights are here (Table 3's oracle)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...stages.likelihood import has_bfloat16, load_model
from ...store.errors import InputError
from ...store.model import load_tokenizer
from .oracle import Text, Truth

_LOGITS_HELD = 1 << 27
"""Logits of one forward pass that are held at a time."""
_ROWS = 64


class WhiteBox:
    """A Hugging Face causal model, teacher-forced over texts."""

    def __init__(self, folder: Path, dtype: str) -> None:
        auto = torch.bfloat16 if has_bfloat16() else torch.float32
        self._tokenizer: Any = load_tokenizer(folder)
        self._model, self._device = load_model(str(folder), auto if dtype == "auto" else getattr(torch, dtype))

    def truths(self, texts: Sequence[Text]) -> list[Truth]:
        """Log-probabilities of the chunks, each given what stood before it.

        Raises:
            InputError: a text does not fit the model's context.
        """
        rows = [self._tokens(text) for text in texts]
        longest = max((len(row.ids) for row in rows), default=0)
        if longest > self._model.config.max_position_embeddings:
            raise InputError(
                f"A chunk ends at token {longest}, beyond the white-box teacher's context.",
                "Study shorter trajectories (generate.max_new_tokens), or a teacher with a longer context.",
            )
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        logprobs = [0.0] * len(rows)
        for batch in self._batches(order, rows):
            for i, logprob in zip(batch, self._score([rows[i] for i in batch]), strict=True):
                logprobs[i] = logprob
        return [Truth(p, row.chunk_tokens, row.straddled) for p, row in zip(logprobs, rows, strict=True)]

    def _tokens(self, text: Text) -> "_Tokens":
        """The teacher reads `before` as tokens and continues from there, so that is what the chunk is conditioned on.
        Where it would tokenize both together differently, the chunk's own tokens stand after those of `before`."""
        tokenizer = self._tokenizer
        # A prompt from a chat template begins with its special token already.
        special = not (tokenizer.bos_token and text.before.startswith(tokenizer.bos_token))
        before = tokenizer(text.before, add_special_tokens=special)["input_ids"] or [tokenizer.eos_token_id]
        both = tokenizer(text.before + text.chunk, add_special_tokens=special)["input_ids"]
        straddled = both[: len(before)] != before
        if straddled:
            both = before + tokenizer(text.chunk, add_special_tokens=False)["input_ids"]
        return _Tokens(both, len(both) - len(before), straddled)

    def _batches(self, order: list[int], rows: "Sequence[_Tokens]") -> Iterator[list[int]]:
        vocabulary = int(self._model.config.vocab_size)
        batch: list[int] = []
        for i in order:
            kept = max(rows[j].chunk_tokens for j in [*batch, i]) + 1
            if batch and (len(batch) == _ROWS or (len(batch) + 1) * kept * vocabulary > _LOGITS_HELD):
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    @torch.inference_mode()
    def _score(self, rows: "Sequence[_Tokens]") -> list[float]:
        """Summed log-probs of each row's last `chunk_tokens` tokens; padded on the left, so that all end together."""
        width = max(len(row.ids) for row in rows)
        kept = max(row.chunk_tokens for row in rows)
        ids_BS = torch.zeros(len(rows), width, dtype=torch.long)
        mask_BS = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids_BS[i, width - len(row.ids) :] = torch.tensor(row.ids)
            mask_BS[i, width - len(row.ids) :] = 1
        positions_BS = (mask_BS.cumsum(dim=1) - 1).clamp(min=0)
        logits_BKV: Tensor = self._model(
            input_ids=ids_BS.to(self._device), attention_mask=mask_BS.to(self._device),
            position_ids=positions_BS.to(self._device), logits_to_keep=kept + 1,
        ).logits[:, :-1]  # fmt: skip
        targets_BK = ids_BS[:, width - kept :].to(self._device)
        nll_BK = torch.nn.functional.cross_entropy(logits_BKV.transpose(1, 2).float(), targets_BK, reduction="none")
        counts_B1 = torch.tensor([[row.chunk_tokens] for row in rows], device=self._device)
        inside_BK = torch.arange(kept, device=self._device) >= kept - counts_B1
        return (-nll_BK.double() * inside_BK).sum(dim=1).tolist()


@dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    chunk_tokens: int
    """Of these, how many at the end are the chunk's."""
    straddled: bool
