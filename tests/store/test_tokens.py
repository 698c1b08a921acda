"""Prompts to tokens and responses to text: nothing is added that the student did not read, or lost that it wrote."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.store.tokens import prompt_ids, response_decoder
from support import tokenizers as kit
from support.tokenizers import BOS, EOS, TURN

KINDS = {"byte level": kit.byte_level, "metaspace": kit.metaspace, "byte fallback": kit.byte_fallback}


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_a_tokenizer_that_appends_its_end_of_sequence_does_not_end_the_prompt_with_it():
    tokenizer = kit.byte_level("<s> $A </s>")
    assert tokenizer("ab")["input_ids"] == [BOS, *encode(tokenizer, "ab"), EOS]
    assert prompt_ids(tokenizer, "ab", templated=False) == [BOS, *encode(tokenizer, "ab")]


def test_an_end_of_sequence_that_the_template_writes_is_the_users():
    tokenizer = kit.byte_level("<s> $A </s>")
    assert prompt_ids(tokenizer, "a</s>", templated=False) == [BOS, *encode(tokenizer, "a"), EOS]


@pytest.mark.parametrize("templated", [True, False])
def test_the_token_that_begins_a_sequence_is_not_doubled(templated):
    tokenizer = kit.byte_level("<s> $A")
    assert prompt_ids(tokenizer, "<s>ab", templated=templated) == [BOS, *encode(tokenizer, "ab")]


def test_a_template_that_writes_no_special_token_gets_none():
    tokenizer = kit.byte_level("<s> $A")
    assert prompt_ids(tokenizer, "ab", templated=True) == encode(tokenizer, "ab")


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_that_begins_with_a_space_keeps_it(kind):
    tokenizer = KINDS[kind]()
    prompt, response = encode(tokenizer, "ask:"), encode(tokenizer, "x yes")[-4:]
    assert response_decoder(tokenizer)(response) == " yes"
    together = tokenizer.decode(prompt + response, clean_up_tokenization_spaces=False)
    assert together == "ask: yes"


@pytest.mark.parametrize("kind", KINDS)
@given(
    prompt=st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), min_size=1, max_size=8),
    response=st.text(st.sampled_from(" a\u4e16\U0001f389.1"), max_size=12),
    cut=st.integers(0, 12),
)
def test_prompt_and_response_decoded_apart_are_what_they_are_together(kind, prompt, response, cut):
    """For every cut between characters, too: prefixes of a response are prefixes of its text."""
    tokenizer = TOKENIZERS[kind]
    decode = response_decoder(tokenizer)
    first = encode(tokenizer, prompt)
    # What SentencePiece puts in front of a text is no part of the response.
    start = len(encode(tokenizer, "x"))
    ids = encode(tokenizer, "x" + response)[start:]
    whole = tokenizer.decode(first, clean_up_tokenization_spaces=False)
    assert tokenizer.decode(first + ids, clean_up_tokenization_spaces=False) == whole + decode(ids)
    part = encode(tokenizer, "x" + response[:cut])[start:]
    assert ids[: len(part)] == part
    assert decode(ids).startswith(decode(part))


TOKENIZERS = {name: make() for name, make in KINDS.items()}


@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
@given(text=st.text(st.sampled_from("a \u00e9\u4e16\U0001f389"), min_size=1, max_size=6), cut=st.integers(1, 3))
def test_a_character_that_is_cut_off_spoils_none_before_it(kind, text, cut):
    """A chunk may end inside a character."""
    tokenizer = TOKENIZERS[kind]
    decode = response_decoder(tokenizer)
    ids = encode(tokenizer, "x" + text)[len(encode(tokenizer, "x")) :]
    last = len(ids) - len(encode(tokenizer, "x" + text[:-1])[len(encode(tokenizer, "x")) :])
    cut = min(cut, last - 1)
    assert decode(ids) == text
    assert decode(ids[: len(ids) - cut]).rstrip("\ufffd") == (text[:-1] if cut else text)


def test_a_special_token_inside_a_response_is_shown():
    tokenizer = kit.metaspace()
    assert response_decoder(tokenizer)([TURN, *encode(tokenizer, "x y")[-2:]]) == "<|im_end|> y"
