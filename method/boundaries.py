"""Which tokens a chunk may start at: a text teacher cannot continue half a character.

One table over the vocabulary, so that a trajectory costs one look-up a token.
"""

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def clean_start_table(tokenizer: "PreTrainedTokenizerBase", boundary: Literal["char", "word"]) -> NDArray[np.bool_]:
    """For each token id [V]: whether a text may be cut before it."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert isinstance(tokens, list)
    special = set(tokenizer.all_special_ids)
    first_bytes = [None if i in special else _first_byte(token) for i, token in enumerate(tokens)]
    if boundary == "word":
        return np.array([byte is None or not _inside_word(byte) for byte in first_bytes])
    return np.array([byte is None or not _inside_character(byte) for byte in first_bytes])


def _first_byte(token: str | None) -> int | None:
    """First byte of a token's text: byte-level BPE, SentencePiece byte tokens (<0xE2>), or plain text."""
    if not token:
        return None
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return int(token[3:5], 16)
    if token[0] == "\u2581":  # SentencePiece writes a space so
        return 0x20
    return _BYTE_OF.get(token[0], token[0].encode()[0])


def _inside_character(byte: int) -> bool:
    """UTF-8 continuation bytes are 10xxxxxx."""
    return byte & 0b1100_0000 == 0b1000_0000


def _inside_word(byte: int) -> bool:
    return _inside_character(byte) or chr(byte).isalnum() or byte == ord("_") or byte >= 0x80


def _byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level BPE writes bytes (GPT-2's table): printable Latin-1 stands for itself, the
    other bytes for the code points from 256 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()
