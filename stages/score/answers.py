"""Training sequences of the teacher's answers, a bounded part at a time."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa

from ...method.objectives.record import Answers
from .sql import SHARDS_A_PART, TOKENS_A_PART, parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZED_TOGETHER = 256


def answer_shards(
    db: duckdb.DuckDBPyConnection, answers: Answers, tokenizer: "PreTrainedTokenizerBase", stop_id: int | None
) -> Iterator[pa.Table]:
    """Rows of the shards table.

    Args:
        stop_id: What ends a turn of the student's; None: it has no such token.
    """
    held: list[pa.Table] = []
    tokens = 0
    with contextlib.closing(db.cursor()) as cursor:
        for batch in parts(cursor, answers.sql, {}, _TOKENIZED_TOGETHER):
            rows = answers.sequences(batch, tokenizer, stop_id)
            held.append(rows)
            tokens += len(rows["input_ids"].combine_chunks().values)
            if tokens >= TOKENS_A_PART or sum(map(len, held)) >= SHARDS_A_PART:
                yield pa.concat_tables(held)
                held, tokens = [], 0
    if held:
        yield pa.concat_tables(held)
