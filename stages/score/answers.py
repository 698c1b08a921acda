"""sft: the teacher's answers as training sequences, in the student's tokens (Eq. 1)."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...store.schema import SHARDS
from .sql import SHARDS_A_PART, TOKENS_A_PART, parts, statements

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZED_TOGETHER = 256


def answer_shards(
    db: duckdb.DuckDBPyConnection, tokenizer: "PreTrainedTokenizerBase", stop_id: int | None
) -> Iterator[pa.Table]:
    """One sequence for each usable answer: prompt, answer, and the stop token where the teacher ended by itself.

    Args:
        stop_id: What ends a turn of the student's; None: it has no such token.
    """
    held: list[pa.Table] = []
    tokens = 0
    with contextlib.closing(db.cursor()) as cursor:
        for batch in parts(cursor, statements()["answers"], {}, _TOKENIZED_TOGETHER):
            rows = _tokenized(batch, tokenizer, stop_id)
            held.append(rows)
            tokens += len(rows["input_ids"].combine_chunks().values)
            if tokens >= TOKENS_A_PART or sum(map(len, held)) >= SHARDS_A_PART:
                yield pa.concat_tables(held)
                held, tokens = [], 0
    if held:
        yield pa.concat_tables(held)


def _tokenized(batch: pa.Table, tokenizer: "PreTrainedTokenizerBase", stop_id: int | None) -> pa.Table:
    encoded = tokenizer(batch["text"].to_pylist(), add_special_tokens=False, verbose=False)["input_ids"]
    end = [] if stop_id is None else [stop_id]
    sequences: list[NDArray[np.int32]] = []
    prompt_B = np.zeros(len(batch), dtype=np.int64)
    columns = batch["prompt_ids"].to_pylist(), encoded, batch["ended"].to_pylist()
    for row, (prompt, answer, ended) in enumerate(zip(*columns, strict=True)):
        prompt_B[row] = len(prompt)
        sequences.append(np.array([*prompt, *answer, *(end if ended else [])], dtype=np.int32))  # pyright: ignore[reportGeneralTypeIssues]
    length_B = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(length_B)]).astype(np.int32)
    position_T = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length_B)
    answer_T = position_T >= np.repeat(prompt_B, length_B)

    def lists(values_T: NDArray[np.generic]) -> pa.Array:
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values_T))

    return pa.table(
        {
            "trajectory_id": batch["trajectory_id"],
            "input_ids": lists(np.concatenate(sequences)),
            "loss_weight": lists(answer_T.astype(np.float32)),
            "audited": lists(answer_T),
            "response_mask": lists(answer_T),
            # Nobody sampled these tokens from the student.
            "behaviour_logprobs": lists(np.zeros(len(answer_T), dtype=np.float32)),
            "rollout_index": batch["rollout_index"],
        }
    ).cast(SHARDS.schema)
