"""`omniopd generate`: questions in, the trajectories table out."""

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...store.config import Config, made_with
from ...store.layout import RunDir
from ...store.policy import resolve_model, weights_hash
from ...store.shard import ALONE, Shard
from ...store.table import Table
from ..progress import progress
from ..student import load_tokenizer, stop_ids
from .engine import Engine, Request, Response, Sampling, make_engine
from .prompts import Prompt, questions_of_round, read_questions, render
from .repetition import repetition
from .workers import claim_devices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate(run: RunDir, index: int, config: Config, shard: Shard = ALONE) -> str:
    """Sample the trajectories of a round that are not there yet. Returns a line about the table.

    Args:
        shard: The share that this worker fills. Prompts are dealt out in turn, so that the samples of a prompt stay
            together and share its prefix.

    Raises:
        InputError: the prompts or the model cannot be used.
        ConfigChangedError: the table was begun with other settings.
    """
    round_ = run.round(index)
    questions = questions_of_round(read_questions(config.data), config.data, index)
    folder = resolve_model(run.policy_for(index, config))
    tokenizer = load_tokenizer(folder)
    prompts = render(questions, config.data, tokenizer)
    policy = weights_hash(folder)
    wanted = {
        trajectory_id(policy, prompt, sample, config.generate.seed): (prompt, sample)
        for prompt in prompts[shard.index :: shard.count]
        for sample in range(config.generate.samples_per_prompt)
    }
    table = round_.trajectories_of(shard)
    with round_.lock("generate", shard):
        round_.expect("generate", len(wanted), shard)
        content = {"questions": _hash("\n".join(questions)), "policy": policy}
        table.begin(made_with(config, table.spec.name) | content)
        present = {key for (key,) in table.existing_keys()}
        missing = [Request(id_, prompt.ids) for id_, (prompt, _) in wanted.items() if id_ not in present]
        if missing:
            claim_gpus(config.generate.tensor_parallel)
            engine = make_engine(str(folder), config, max(len(prompt.ids) for prompt in prompts))
            sampling = Sampling(
                config.generate.max_new_tokens, config.generate.temperature, config.generate.top_p,
                stop_ids(folder, tokenizer, config),
            )  # fmt: skip
            writer = Writer(table, wanted, tokenizer, sampling, {"round": index, "policy": policy})
            with contextlib.closing(engine):
                writer.fill(engine, missing, config.generate.part_rows)
        table.finish()
    return summary(run, index)


def claim_gpus(each: int) -> None:
    """Keep this worker to its own GPUs."""
    import torch

    claim_devices(os.environ, torch.cuda.device_count(), each)


def trajectory_id(policy: str, prompt: Prompt, sample_index: int, seed: int) -> str:
    """Stable 128-bit name of a trajectory, in hex."""
    return _hash(f"{policy}|{prompt.prompt_id}|{sample_index}|{seed}")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Writer:
    """From responses to rows of the table."""

    table: Table
    wanted: Mapping[str, tuple[Prompt, int]]
    """Prompt and sample index of each trajectory."""
    tokenizer: "PreTrainedTokenizerBase"
    sampling: Sampling
    shared: Mapping[str, Any]
    """Columns that are the same in all rows."""

    def fill(self, engine: Engine, missing: Sequence[Request], part_rows: int) -> None:
        """Sample, and commit every `part_rows` trajectories as they finish, with progress."""
        rows: list[dict[str, Any]] = []
        with progress("generate", len(self.wanted), len(self.wanted) - len(missing)) as advance:
            note = _Notes()
            for response in engine.generate(missing, self.sampling):
                rows.append(self._row(response) | {"entropy_source": engine.entropy_source})
                advance(1, note(response))
                if len(rows) == part_rows:
                    self.table.append(rows)
                    rows = []
        self.table.append(rows)

    def _row(self, response: Response) -> dict[str, Any]:
        prompt, sample_index = self.wanted[response.trajectory_id]
        ids = response.ids_T.tolist()
        spoken = ids[:-1] if ids[-1] in self.sampling.stop_ids else ids
        return {
            **self.shared,
            "trajectory_id": response.trajectory_id,
            "prompt_id": prompt.prompt_id,
            "sample_index": sample_index,
            "question": prompt.question,
            "prompt_text": prompt.text,
            "prompt_ids": prompt.ids,
            "response_text": self.tokenizer.decode(spoken, clean_up_tokenization_spaces=False),
            "response_ids": response.ids_T,
            "logprobs": response.logprobs_T,
            "entropies": response.entropies_T,
            "finish_reason": response.finish_reason,
            "repetition": repetition(response.ids_T),
        }


class _Notes:
    """The state of the sampling in a few words, after each response."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._responses = self._tokens = self._cut = 0

    def __call__(self, response: Response) -> str:
        self._responses += 1
        self._tokens += len(response.ids_T)
        self._cut += response.finish_reason == "length"
        rate = self._tokens / (time.monotonic() - self._start)
        return (
            f"{rate:.0f} tokens/s, mean length {self._tokens / self._responses:.0f},"
            f" {self._cut / self._responses:.1%} cut off"
        )


def summary(run: RunDir, index: int) -> str:
    """One line about a round's trajectories, of all workers."""
    import polars as pl

    table = run.round(index).trajectories.read(["response_ids", "finish_reason", "repetition"])
    (row,) = (
        pl.LazyFrame(table)
        .select(
            pl.len().alias("rows"),
            pl.col("response_ids").list.len().sum().alias("tokens"),
            (pl.col("finish_reason") == "length").mean().alias("cut"),
            pl.col("repetition").mean().alias("repetition"),
        )
        .collect()
        .to_dicts()
    )
    if not row["rows"]:
        return "no trajectories in this shard"
    repeated = "" if row["repetition"] is None else f", mean repetition {row['repetition']:.3f}"
    return (
        f"{row['rows']} trajectories, {row['tokens']} tokens, mean length {row['tokens'] / row['rows']:.1f},"
        f" {row['cut']:.1%} cut off at the limit{repeated}"
    )
