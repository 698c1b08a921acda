"""The texts around a chunk: what the teacher continues is what the student wrote, to the space."""

import numpy as np
import pyarrow as pa
import pytest

from omniopd.method.boundaries import clean_start_table
from omniopd.stages.audit.chunks import chunks_of
from omniopd.store.sections import SelectConfig
from omniopd.store.tokens import response_decoder
from support import tokenizers as kit


def chunks(tokenizer, ids, select):
    """Chunks of one response whose entropy rises."""
    rows = pa.RecordBatch.from_pydict(
        {
            "trajectory_id": ["0" * 32],
            "round": pa.array([0], pa.int32()),
            "response_ids": pa.array([ids], pa.list_(pa.int32())),
            "logprobs": pa.array([np.full(len(ids), -1.0, np.float32)], pa.list_(pa.float32())),
            "entropies": pa.array([np.arange(len(ids), dtype=np.float32)], pa.list_(pa.float32())),
        }
    )
    clean = clean_start_table(tokenizer, "char")
    table = chunks_of(rows, select, response_decoder(tokenizer), clean, frozenset([kit.EOS]))
    return table.sort_by("start").select(["start", "end", "prefix_text", "chunk_text"]).to_pylist()


def tokens(tokenizer, text):
    """As tokens of a response: without the space that SentencePiece puts in front of a text."""
    front = tokenizer("x", add_special_tokens=False)["input_ids"]
    return tokenizer("x" + text, add_special_tokens=False)["input_ids"][len(front) :]


@pytest.mark.parametrize("make", [kit.byte_level, kit.metaspace, kit.byte_fallback])
def test_prefixes_begin_with_the_space_that_the_response_begins_with(make):
    tokenizer = make()
    text = " 12 is it"
    rows = chunks(tokenizer, tokens(tokenizer, text), SelectConfig(chunks=9, chunk_tokens=1))
    assert [row["prefix_text"] + row["chunk_text"] for row in rows] == [text[: i + 1] for i in range(len(text))]


def test_a_chunk_that_ends_inside_a_character_has_the_whole_ones():
    """Byte tokens of Llama 2 and Mistral: a decoder gives up a run of them that is no UTF-8."""
    tokenizer = kit.byte_fallback()
    ids = tokens(tokenizer, "a\u4e16\u754c\u4eba")
    (row,) = chunks(tokenizer, ids[:-1], SelectConfig(chunks=1, chunk_tokens=5))
    assert (row["start"], row["end"]) == (4, 9)
    assert (row["prefix_text"], row["chunk_text"]) == ("a\u4e16", "\u754c")


def test_the_earliest_is_the_one_of_all_that_comes_first():
    tokenizer = kit.byte_level()
    ids = tokens(tokenizer, "1 + 2 = 3, so 4")
    everything = chunks(tokenizer, ids, SelectConfig(chunks=3, chunk_tokens=2))
    kept = chunks(tokenizer, ids, SelectConfig(chunks=3, chunk_tokens=2, keep="earliest"))
    assert len(everything) == 3
    assert kept == everything[:1]
