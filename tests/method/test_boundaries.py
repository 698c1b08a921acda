"""A chunk never starts inside a character, whatever the tokenizer writes."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from omniopd.method.boundaries import clean_start_table

TEXT = "naïve 数学 🙂🙃 x²+π≈3, done"


@pytest.fixture(scope="module")
def byte_level():
    """One token a byte: the worst case, every character of several bytes is cut."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


@pytest.fixture(scope="module")
def sentencepiece_like():
    """A character vocabulary with byte tokens for the rest, as Llama 2 and Mistral have."""
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)}
    vocab |= {symbol: 256 + i for i, symbol in enumerate("\u2581abcdefghijklmnopqrstuvwxyz")}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>")


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece_like"])
def test_a_clean_start_is_where_the_prefix_decodes_to_a_prefix_of_the_text(name, request):
    tokenizer = request.getfixturevalue(name)
    ids = tokenizer(TEXT)["input_ids"]
    assert tokenizer.decode(ids) == TEXT
    clean = clean_start_table(tokenizer, "char")[ids]
    decodes = [TEXT.startswith(tokenizer.decode(ids[:i])) for i in range(len(ids))]
    assert clean.tolist() == decodes
    assert not all(decodes)


def test_a_word_start_is_not_inside_a_word(byte_level):
    ids = byte_level("ab c, d")["input_ids"]
    assert clean_start_table(byte_level, "word")[ids].tolist() == [False, False, True, False, True, True, False]


def test_special_tokens_are_clean(byte_level):
    table = clean_start_table(byte_level, "word")
    assert table[byte_level.eos_token_id]
    assert table.dtype == np.bool_
