"""Batched sampling from a small Hugging Face causal model: what the demo's teacher server runs.

One batch may mix requests of any prompt length, sample count, temperature and length limit. Prompts are left-padded
and read once; the key-value cache is then repeated for a prompt's samples. Every sample draws its own uniform numbers
before decoding starts, so a seeded request does not depend on what it happened to be batched with.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

FinishReason = Literal["stop", "length"]

GROUP_ROWS = 256
"""Samples decoded together. On two cores 256 took half the time of 2048: their cache still fits near the core."""


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt and how to continue it."""

    prompt_ids: list[int]
    n: int = 1
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation. ``tokens`` counts what was generated, the stop token included."""

    text: str
    finish_reason: FinishReason
    tokens: int


@dataclass(slots=True)
class _Row:
    """One sample while it is being decoded."""

    job: Job
    index: int
    ids: list[int]
    completion: Completion | None = None


class Decoder:
    """A model and its tokenizer, loaded from a folder, on the CPU."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        ).eval()
        self.context = int(self.model.config.max_position_embeddings)
        self._eos = int(self.tokenizer.eos_token_id)
        self._random = torch.Generator().manual_seed(torch.seed())

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt; an empty one becomes the begin token, because there is nothing to continue."""
        return self.tokenizer.encode(text, add_special_tokens=False) or [self.tokenizer.bos_token_id]

    def complete(self, jobs: list[Job]) -> list[list[Completion]]:
        """``n`` completions for every job, in order."""
        import torch

        answers: list[list[Completion]] = [[] for _ in jobs]
        with torch.inference_mode():
            for indices in _similar(jobs):
                rows = [_Row(jobs[index], index, []) for index in indices for _ in range(jobs[index].n)]
                self._decode([jobs[index] for index in indices], rows)
                for row in rows:
                    assert row.completion is not None
                    answers[row.index].append(row.completion)
        return answers

    def _decode(self, jobs: list[Job], rows: list[_Row]) -> None:
        """Fill in every row's completion."""
        import torch

        mask, positions, logits, cache = self._read_prompts(jobs)
        owner = torch.tensor([index for index, job in enumerate(jobs) for _ in range(job.n)])
        cache.batch_select_indices(owner)
        mask, positions, logits = mask[owner], positions[owner, -1:], logits[owner]
        uniforms = torch.cat([self._uniforms(job, max(job.max_tokens for job in jobs)) for job in jobs])
        live, step = torch.arange(len(rows)), 0
        while True:
            tokens = _sample(logits, [rows[row].job for row in live.tolist()], uniforms[live, step])
            going = torch.tensor(
                [self._advance(rows[row], token) for row, token in zip(live.tolist(), tokens.tolist(), strict=True)]
            )
            if not going.any():
                return
            if not going.all():
                keep = going.nonzero().squeeze(1)
                cache.batch_select_indices(keep)
                live, mask, positions, tokens = live[keep], mask[keep], positions[keep], tokens[keep]
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            positions, step = positions + 1, step + 1
            logits = self._forward(tokens[:, None], mask, positions, cache)

    def _read_prompts(self, jobs: list[Job]) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any]":
        """``(mask [B, P], positions [B, P], next logits [B, V], cache)`` of the left-padded prompts."""
        import torch
        from transformers import DynamicCache

        longest = max(len(job.prompt_ids) for job in jobs)
        padding = [longest - len(job.prompt_ids) for job in jobs]
        ids = torch.tensor([[self._eos] * pad + job.prompt_ids for pad, job in zip(padding, jobs, strict=True)])
        mask = (torch.arange(longest) >= torch.tensor(padding)[:, None]).long()
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()
        return mask, positions, self._forward(ids, mask, positions, cache), cache

    def _forward(
        self, ids: "torch.Tensor", mask: "torch.Tensor", positions: "torch.Tensor", cache: Any
    ) -> "torch.Tensor":
        """Logits ``[B, V]`` of the token after the last one."""
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1]

    def _uniforms(self, job: Job, width: int) -> "torch.Tensor":
        """The job's random numbers ``[n, width]``, from its own generator when it has a seed."""
        import torch

        generator = self._random if job.seed is None else torch.Generator().manual_seed(job.seed)
        drawn = torch.rand(job.n, job.max_tokens, generator=generator, dtype=torch.float64)
        return torch.nn.functional.pad(drawn, (0, width - job.max_tokens))

    def _advance(self, row: _Row, token: int) -> bool:
        """Add a token to a row; whether the row continues."""
        row.ids.append(token)
        if token == self._eos:
            row.completion = Completion(self._text(row.ids[:-1]), "stop", len(row.ids))
        elif row.job.stop and (cut := _first_stop(text := self._text(row.ids), row.job.stop)) is not None:
            row.completion = Completion(text[:cut], "stop", len(row.ids))
        elif len(row.ids) >= row.job.max_tokens:
            row.completion = Completion(self._text(row.ids), "length", len(row.ids))
        return row.completion is None

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def _similar(jobs: list[Job]) -> list[list[int]]:
    """The jobs' indices in groups of about ``GROUP_ROWS`` samples, prompts of similar length together."""
    groups: list[list[int]] = []
    rows = GROUP_ROWS
    for index in sorted(range(len(jobs)), key=lambda index: len(jobs[index].prompt_ids)):
        if rows >= GROUP_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(index)
        rows += jobs[index].n
    return groups


def _first_stop(text: str, stop: tuple[str, ...]) -> int | None:
    """Where the first of the stop strings begins, or None."""
    found = [at for at in map(text.find, stop) if at >= 0]
    return min(found, default=None)


def _sample(logits: "torch.Tensor", jobs: list[Job], uniforms: "torch.Tensor") -> "torch.Tensor":
    """One token a row ``[B]`` by inverting the cumulative distribution at the row's uniform number."""
    import torch

    temperature = logits.new_tensor([job.temperature for job in jobs])[:, None]
    top_p = torch.tensor([job.top_p for job in jobs], dtype=torch.float64)[:, None]
    probabilities = (logits / temperature.clamp(min=1e-6)).softmax(dim=-1).double()
    order = None
    if bool((top_p < 1).any()):
        probabilities, order = probabilities.sort(dim=-1, descending=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    cumulative = probabilities.cumsum(dim=-1)
    target = uniforms[:, None] * cumulative[:, -1:]
    picked = torch.searchsorted(cumulative, target, right=True).clamp(max=logits.shape[-1] - 1)
    sampled = (picked if order is None else order.gather(1, picked)).squeeze(1)
    return torch.where(temperature.squeeze(1) > 0, sampled, logits.argmax(dim=-1))
