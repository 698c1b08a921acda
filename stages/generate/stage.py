"""`omniopd generate`: questions in, the trajectories table out."""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ...store.config import Config, made_with
from ...store.layout import RunDir
from ...store.policy import resolve_model, weights_hash
from ..progress import progress
from ..student import load_tokenizer, stop_ids
from .engine import Engine, Request, Response, Sampling, make_engine
from .prompts import Prompt, questions_of_round, read_questions, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def generate(run: RunDir, index: int, config: Config) -> str:
    """Sample the trajectories of a round that are not there yet. Returns a line about the table.

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
        for prompt in prompts
        for sample in range(config.generate.samples_per_prompt)
    }
    table = round_.trajectories
    with round_.lock("generate"):
        content = {"questions": _hash("\n".join(questions)), "policy": policy}
        table.begin(made_with(config, table.spec.name) | content)
        present = {key for (key,) in table.existing_keys()}
        missing = [Request(id_, prompt.ids) for id_, (prompt, _) in wanted.items() if id_ not in present]
        if missing:
            engine = make_engine(str(folder), config)
            sampling = Sampling(
                config.generate.max_new_tokens, config.generate.temperature, config.generate.top_p,
                stop_ids(folder, tokenizer, config),
            )  # fmt: skip
            for part in _parts(engine, missing, sampling, config.generate.part_rows, len(wanted)):
                rows = [_row(response, *wanted[response.trajectory_id], tokenizer, sampling) for response in part]
                shared = {"round": index, "policy": policy, "entropy_source": engine.entropy_source}
                table.append([row | shared for row in rows])
        table.finish()
    return summary(run, index)


def trajectory_id(policy: str, prompt: Prompt, sample_index: int, seed: int) -> str:
    """Stable 128-bit name of a trajectory, in hex."""
    return _hash(f"{policy}|{prompt.prompt_id}|{sample_index}|{seed}")


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _parts(
    engine: Engine, requests: list[Request], sampling: Sampling, part_rows: int, total: int
) -> Iterator[list[Response]]:
    """Responses in parts to be committed, with progress."""
    part: list[Response] = []
    tokens = 0
    with progress("generate", total, total - len(requests)) as advance:
        for response in engine.generate(requests, sampling):
            part.append(response)
            tokens += len(response.ids_T)
            advance(1, f"{tokens} tokens")
            if len(part) == part_rows:
                yield part
                part = []
    yield part


def _row(
    response: Response, prompt: Prompt, sample_index: int, tokenizer: "PreTrainedTokenizerBase", sampling: Sampling
) -> dict[str, Any]:
    ids = response.ids_T.tolist()
    spoken = ids[:-1] if ids[-1] in sampling.stop_ids else ids
    return {
        "trajectory_id": response.trajectory_id,
        "prompt_id": prompt.prompt_id,
        "sample_index": sample_index,
        "question": prompt.question,
        "prompt_text": prompt.text,
        "prompt_ids": prompt.ids,
        "response_text": tokenizer.decode(spoken, clean_up_tokenization_spaces=False),
        "response_ids": response.ids_T,
        "logprobs": response.logprobs_T,
        "entropies": response.entropies_T,
        "finish_reason": response.finish_reason,
    }


def summary(run: RunDir, index: int) -> str:
    """One line about a round's trajectories."""
    import polars as pl

    table = run.round(index).trajectories.read(["response_ids", "finish_reason"])
    (row,) = (
        pl.LazyFrame(table)
        .select(
            pl.len().alias("rows"),
            pl.col("response_ids").list.len().sum().alias("tokens"),
            (pl.col("finish_reason") == "length").mean().alias("cut"),
        )
        .collect()
        .to_dicts()
    )
    return (
        f"{row['rows']} trajectories, {row['tokens']} tokens, mean length {row['tokens'] / row['rows']:.1f},"
        f" {row['cut']:.1%} cut off at the limit"
    )
