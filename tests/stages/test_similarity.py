"""φ beside a plain Python edit distance, and the estimator's theorems."""

import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniopd.stages.score.similarity import edit, encode

texts = st.text(st.sampled_from("ab é数🙂\n,.+1_"), max_size=30) | st.text(max_size=20)


def units_of(text, unit):
    text = unicodedata.normalize("NFC", text)
    return list(text) if unit == "char" else re.findall(r"\w+|[^\w\s]", text)


def reference(chunk, rollout, unit):
    a, b = units_of(chunk, unit), units_of(rollout, unit)
    if not a:
        return None
    b = b[: len(a)]
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return 1 - previous[-1] / max(len(a), len(b))


def column(values):
    return pa.chunked_array([pa.array(values, pa.string())])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=8))
def test_characters_equal_the_reference_for_any_text(pairs):
    got = edit(column([a for a, _ in pairs]), column([b for _, b in pairs]), "char").to_pylist()
    assert got == pytest.approx([reference(a, b, "char") for a, b in pairs], abs=1e-12, nan_ok=True)


# Python's \w leaves out combining marks, which Unicode's definition (and so the product) counts as parts of words.
words = st.lists(st.sampled_from(["7", "12", "+", "=", "x_1", "数学", "naïve", "🙂", "\\frac", "\n"]), max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(words.map(" ".join), words.map(" ".join)), min_size=1, max_size=8))
def test_words_equal_the_reference(pairs):
    got = edit(column([a for a, _ in pairs]), column([b for _, b in pairs]), "word").to_pylist()
    assert got == pytest.approx([reference(a, b, "word") for a, b in pairs], abs=1e-12, nan_ok=True)


@given(texts, texts)
def test_it_lies_between_zero_and_one_and_is_one_for_equal_texts(a, b):
    assert all(value is None or 0 <= value <= 1 for value in edit(column([a]), column([b]), "word").to_pylist())
    assert edit(column([a + "x"]), column([a + "x"]), "char").to_pylist() == [1.0]


def test_a_longer_rollout_is_cut_to_the_chunk():
    assert edit(column(["a b"]), column(["a b c d e f"]), "word").to_pylist() == [1.0]


def test_an_empty_rollout_is_a_miss_and_an_empty_chunk_is_not_judged():
    assert edit(column(["a", " \n"]), column(["", "a"]), "word").to_pylist() == [0.0, None]


def test_composed_and_decomposed_characters_are_equal():
    assert edit(column(["é"]), column(["e\u0301"]), "char").to_pylist() == [1.0]


def test_many_distinct_units_pass_the_surrogates_without_a_clash():
    many = " ".join(str(i) for i in range(70_000))
    (chunk,), (rollout,) = encode(column([many]), column([many]), "word")
    assert len(set(chunk)) == 70_000
    assert chunk == rollout


def test_an_empty_column_is_an_empty_answer():
    assert len(edit(column([]), column([]), "word")) == 0
    assert np.asarray(edit(column([""]), column([""]), "char").to_pylist()).tolist() == [None]
