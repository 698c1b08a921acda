"""Texts as units: beside the regular expression, and at the edges of Unicode."""

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from omniopd.method.similarity.units import CharUnits, DigitUnits, TokenUnits, WordUnits, pairs_of

PATTERN = r"\w+|[^\w\s]"

texts = st.lists(
    st.text(st.sampled_from("ab é数🙂\n,.+1_\0\u0301\u200d\u3000") | st.characters(codec="utf-8"), max_size=30)
    | st.text("abcdefgh", min_size=6, max_size=11),
    max_size=8,
)


@given(texts)
def test_words_are_what_the_regular_expression_finds(texts):
    codes, lengths = WordUnits().encode(pa.array(texts, pa.string()))
    found = pl.Series(texts, dtype=pl.String).str.extract_all(PATTERN).to_list()
    assert lengths.tolist() == [len(units) for units in found]
    code_of = {}
    for unit, code in zip([unit for units in found for unit in units], codes.tolist(), strict=True):
        assert code_of.setdefault(unit, code) == code
    assert len(set(code_of.values())) == len(code_of)


@given(st.lists(st.text(st.sampled_from("0 19é٣数🙂,"), max_size=20), max_size=6))
def test_digits_are_the_ascii_ones_and_all_else_is_left_out(texts):
    codes, lengths = DigitUnits().encode(pa.array(texts, pa.string()))
    found = [[ord(c) for c in text if c in "0123456789"] for text in texts]
    assert lengths.tolist() == [len(digits) for digits in found]
    assert codes.tolist() == [code for digits in found for code in digits]


def test_by_digits_a_chunk_agrees_with_a_rollout_of_other_wording():
    pairs = pairs_of(pa.array([" is 85, th", " then"]), pa.array([" makes 85; 85-14=71", " gives 1"]), DigitUnits())
    assert pairs.chunks == pairs.rollouts == ["85", ""]
    assert pairs.rollout_text(0) == " makes 85"


@given(st.text(max_size=30), st.integers(0, 30))
def test_a_text_cut_after_so_many_units_has_so_many(text, units):
    for encoder in (WordUnits(), CharUnits(), DigitUnits()):
        _, (length,) = encoder.encode(pa.array([text]))
        cut = encoder.cut(text, min(units, int(length)))
        assert text.startswith(cut)
        assert encoder.encode(pa.array([cut]))[1].tolist() == [min(units, int(length))]


@pytest.mark.parametrize("encoder", [WordUnits(), CharUnits()], ids=["word", "char"])
def test_composed_and_decomposed_characters_are_equal(encoder):
    pairs = pairs_of(pa.array(["é", "Å"]), pa.array(["e\u0301", "\u212b"]), encoder)
    assert pairs.chunks == pairs.rollouts


def test_marks_emoji_and_formulas_are_cut_as_unicode_has_it():
    cases = {
        "नमस्ते दुनिया": 2,
        "数学abc": 1,
        "👩\u200d🔬": 3,
        r"\frac{x}{2}": 8,
        "3.14": 3,
        "don't": 3,
        "a\u00a0b\u3000c": 3,
    }
    _, lengths = WordUnits().encode(pa.array(list(cases)))
    assert dict(zip(cases, lengths.tolist(), strict=True)) == cases


def test_many_distinct_units_pass_the_surrogates_without_a_clash():
    many = " ".join(str(i) for i in range(70_000))
    pairs = pairs_of(pa.array([many]), pa.array([many]), WordUnits())
    assert len(set(pairs.chunks[0])) == 70_000
    assert pairs.chunks == pairs.rollouts


def test_tokens_are_the_students_and_a_cut_text_is_so_many_of_them(student):
    tokenizer = AutoTokenizer.from_pretrained(student)
    pairs = pairs_of(pa.array(["12+3"]), pa.array(["12+345"]), TokenUnits(tokenizer))
    assert [ord(unit) for unit in pairs.chunks[0]] == tokenizer.encode("12+3", add_special_tokens=False)
    assert pairs.rollout_text(0) == "12+3"


def test_sliced_and_null_columns_are_read_from_their_own_rows():
    column = pa.array(["x", "a b", None, "c"])
    pairs = pairs_of(column.slice(1), column.slice(1), WordUnits())
    assert pairs.chunk_length_P.tolist() == [2, 0, 1]
    assert WordUnits().encode(column.slice(3))[1].tolist() == [1]
