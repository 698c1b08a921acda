"""Log-probs and entropies from a teacher-forced pass over finished responses, for any engine.

The pass is a causal forward of the whole sequence without a cache. Logits, log-softmax and entropy are formed in
float32, a few hundred rows at a time, as the trainer's loss forms them; so memory grows with the hidden states of a
batch, not with its logits (20,000 tokens x 152,000 words would be 12 GB).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM

from ..engine import Engine, Request, Response, Sampling
from .sampling import log_probs_and_entropy

_TOKENS_AT_A_TIME = 16384
"""Prompt and response tokens, padding included, in one forward pass, unless a single sequence has more."""

_ROWS_OF_LOGITS = 256
"""Rows of logits held at a time."""

_RESPONSES_HELD = 64
"""Responses that wait for each other, to be sorted by length."""


@dataclass(frozen=True)
class Rescored:
    """An engine whose responses get their log-probs and entropies from a second pass."""

    engine: Engine
    rescorer: "Rescorer"

    @property
    def name(self) -> str:
        return self.engine.name

    @property
    def entropy_source(self) -> str:
        return f"{self.name} rescore ({self.rescorer.name})"

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Response]:
        prompts = {request.trajectory_id: request.prompt_ids for request in requests}
        sampled = self.engine.generate(requests, sampling)
        while responses := list(islice(sampled, _RESPONSES_HELD)):
            yield from self.rescorer.rescore([(prompts[r.trajectory_id], r) for r in responses])

    def close(self) -> None:
        self.engine.close()
        self.rescorer.close()


class Rescorer:
    """The student once more, to read what it wrote."""

    def __init__(self, folder: str, precision: str) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        transformers.logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model = model.to(self._device).eval()  # pyright: ignore[reportArgumentType]
        self.name = f"transformers {transformers.__version__} {str(dtype).removeprefix('torch.')}"

    def close(self) -> None:
        del self._model
        torch.cuda.empty_cache()

    def rescore(self, written: Sequence[tuple[tuple[int, ...], Response]]) -> Iterator[Response]:
        """The responses with new log-probs and entropies, shortest first."""
        ordered = sorted(written, key=_length)
        first = 0
        while first < len(ordered):
            last = first + 1
            while last < len(ordered) and _length(ordered[last]) * (last + 1 - first) <= _TOKENS_AT_A_TIME:
                last += 1
            yield from self._batch(ordered[first:last])
            first = last

    @torch.inference_mode()
    def _batch(self, written: Sequence[tuple[tuple[int, ...], Response]]) -> Iterator[Response]:
        # Padded on the right: under causal attention no token sees the padding, and no mask is needed.
        ids_BS = torch.zeros(len(written), _length(written[-1]), dtype=torch.long)
        for row, (prompt_ids, response) in enumerate(written):
            ids_BS[row, : len(prompt_ids)] = torch.tensor(prompt_ids)
            ids_BS[row, len(prompt_ids) : len(prompt_ids) + len(response.ids_T)] = torch.from_numpy(response.ids_T)
        decoder = self._model.get_decoder()
        hidden_BSH = decoder(input_ids=ids_BS.to(self._device), use_cache=False).last_hidden_state
        for hidden_SH, (prompt_ids, response) in zip(hidden_BSH, written, strict=True):
            # The row before a token predicts it.
            first = len(prompt_ids) - 1
            logprobs_T, entropies_T = self._read(hidden_SH[first : first + len(response.ids_T)], response.ids_T)
            yield replace(response, logprobs_T=logprobs_T, entropies_T=entropies_T)

    def _read(self, hidden_TH: Tensor, ids_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        head = self._model.get_output_embeddings()
        assert isinstance(head, torch.nn.Linear)
        targets_T = torch.from_numpy(ids_T).long().to(self._device)
        logprobs, entropies = [], []
        for hidden_RH, target_R in zip(hidden_TH.split(_ROWS_OF_LOGITS), targets_T.split(_ROWS_OF_LOGITS), strict=True):
            log_probs_RV, entropy_R = log_probs_and_entropy(_float32_product(hidden_RH, head.weight.t()))
            logprobs.append(log_probs_RV.gather(1, target_R[:, None]).squeeze(1))
            entropies.append(entropy_R)
        return torch.cat(logprobs).cpu().numpy(), torch.cat(entropies).cpu().numpy()


def _length(item: tuple[tuple[int, ...], Response]) -> int:
    prompt_ids, response = item
    return len(prompt_ids) + len(response.ids_T)


def _float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in float32, without rounding the result to the inputs' dtype on the way."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
