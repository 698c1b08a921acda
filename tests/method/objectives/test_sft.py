"""Whole answers in the student's tokens."""

import pyarrow as pa
from transformers import AutoTokenizer

from omniopd.method.objectives.sft import answer_sequences
from support.runs import STUDENT


def test_what_looks_like_a_special_token_in_the_teachers_text_is_text():
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    stop = tokenizer.eos_token_id
    answers = pa.table(
        {
            "trajectory_id": ["0" * 32],
            "prompt_ids": pa.array([[5, 6]], pa.list_(pa.int32())),
            "text": [f"1{tokenizer.eos_token}2"],
            "ended": [True],
            "chunk_id": ["1" * 32],
            "rollout_index": pa.array([0], pa.int32()),
        }
    )
    (ids,) = answer_sequences(answers, tokenizer, stop)["input_ids"].to_pylist()
    assert ids[:2] == [5, 6]
    assert ids.count(stop) == 1
    assert ids[-1] == stop
    assert tokenizer.decode(ids[2:-1]) == f"1{tokenizer.eos_token}2"
