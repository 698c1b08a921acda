"""Texts as units: beside the regular expression and a plain loop, and at the edges of Unicode."""

import unicodedata

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from omniopd.method.similarity.metrics import METRICS, similarities
from omniopd.method.similarity.units import WORD_PATTERN, CharUnits, DigitUnits, TokenUnits, WordUnits, pairs_of

UNSPACED = "数学々〇かガーーｶﾞไทยกิ๏ລາວខ្មែរမြန်မာㄅꦗꀀ"
SPACED = "ab é한국नमस्तेДע١٢๑๒၁3_"
OTHER = "🙂\n,.+。 \0\u0301\u200b\u200c\u200d\u3000\u3099"

texts = st.lists(
    st.text(st.sampled_from(UNSPACED + SPACED + OTHER) | st.characters(codec="utf-8"), max_size=30)
    | st.text("abcdefgh", min_size=6, max_size=11),
    max_size=8,
)

BY_CHARACTER = (
    *("CJK UNIFIED", "CJK COMPATIBILITY IDEOGRAPH", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA"),
    *("COMBINING KATAKANA", "BOPOMOFO", "THAI", "LAO", "KHMER", "MYANMAR", "JAVANESE", "YI"),
)
"""How the names of characters begin that are words of their own, where they are letters or marks."""


def plain_words(text):
    """The rule of docs/similarity.md, a character at a time, by the characters' names and categories."""
    words, open_ = [], False
    for character in text:
        category, name = unicodedata.category(character), unicodedata.name(character, "")
        letter = category[0] in "LM" or category == "Nl"
        if letter and name.startswith(BY_CHARACTER):
            words.append(character)
            open_ = False
        elif letter or category in ("Nd", "Pc") or character in "\u200c\u200d":
            if open_:
                words[-1] += character
            else:
                words.append(character)
            open_ = True
        else:
            if not character.isspace() and character != "\u200b":
                words.append(character)
            open_ = False
    return words


@given(texts)
def test_words_are_what_the_regular_expression_finds(texts):
    codes, lengths = WordUnits().encode(pa.array(texts, pa.string()))
    found = pl.Series(texts, dtype=pl.String).str.extract_all(WORD_PATTERN).to_list()
    assert lengths.tolist() == [len(units) for units in found]
    code_of = {}
    for unit, code in zip([unit for units in found for unit in units], codes.tolist(), strict=True):
        assert code_of.setdefault(unit, code) == code
    assert len(set(code_of.values())) == len(code_of)


@given(st.lists(st.text(UNSPACED + SPACED + OTHER, max_size=30), max_size=8))
def test_words_of_mixed_scripts_are_those_of_a_plain_loop(texts):
    codes, lengths = WordUnits().encode(pa.array(texts, pa.string()))
    words = [plain_words(text) for text in texts]
    assert lengths.tolist() == [len(units) for units in words]
    flat = [unit for units in words for unit in units]
    assert len(set(zip(flat, codes.tolist(), strict=True))) == len(set(flat)) == len(set(codes.tolist()))
    assert pl.Series(texts, dtype=pl.String).str.extract_all(WORD_PATTERN).to_list() == words


@pytest.mark.parametrize(
    "text",
    [
        "因此我们得到方程的两个根分别为三", "よってこのほうていしきのかいはさん", "データベースノシステムヲツクリマ",
        "ดังนั้นคำตอบคือส", "ដូច្នេះចម្លើយគឺដ", "ດັ່ງນັ້ນຄຳຕອບແມ່", "ထို့ကြောင့်အဖြေက", "ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏㄐㄑㄒㄓㄔ",
    ],
)  # fmt: skip
def test_one_changed_character_in_sixteen_leaves_fifteen_sixteenths(text):
    text = text[:16]
    assert len(text) == 16
    for place in range(16):
        other = next(c for c in text if c != text[place])
        changed = text[:place] + other + text[place + 1 :]
        columns = (pa.chunked_array([pa.array([side])]) for side in (text, changed))
        assert similarities(METRICS["edit"], WordUnits(), *columns).to_pylist() == [15 / 16]


def test_korean_is_counted_by_its_spaces_and_accents_stay_with_their_letter():
    cases = {
        "따라서 방정식의 해는 삼이다": ["따라서", "방정식의", "해는", "삼이다"],
        "g̃uarani Ve\u030cc": ["g̃uarani", "Ve\u030cc"],
        "ราคา ๑๒๓ บาท 45%": [*"ราคา", "๑๒๓", *"บาท", "45", "%"],
        "第12章、x=3のとき": ["第", "12", "章", "、", "x", "=", "3", *"のとき"],
        "ភាសា\u200bខ្មែរ": [*"ភាសា", *"ខ្មែរ"],
        "コーヒー/ｺｰﾋｰ": [*"コーヒー", "/", *"ｺｰﾋｰ"],
    }
    _, lengths = WordUnits().encode(pa.array(list(cases)))
    assert [plain_words(text) for text in cases] == list(cases.values())
    assert lengths.tolist() == [len(words) for words in cases.values()]


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
        "数学abc": 3,
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
