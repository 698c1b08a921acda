# pyright: strict
"""From a prompt's text to tokens, and from a response's tokens to text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT_CHARACTER = "\ufffd"
"""What a decoder writes for half a character."""

_MOST_UNFINISHED = 3
"""Bytes of a character that is not complete."""

Decode = Callable[[Sequence[int]], str]
"""Text of some tokens."""


def prompt_ids(tokenizer: "PreTrainedTokenizerBase", text: str, *, templated: bool) -> list[int]:
    """Tokens of a prompt that the student is to continue.

    What the tokenizer appends by itself (an end of sequence) is left out: nothing can follow it. What it puts in front
    is left out where the text begins with the same.

    Args:
        templated: A chat template wrote the text, its special tokens included, so that the tokenizer adds none.
    """
    encode: Any = tokenizer
    # The engine says which prompt is too long, so verbose is off.
    encoded = encode(text, add_special_tokens=not templated, return_special_tokens_mask=True, verbose=False)
    ids = cast("list[int]", encoded["input_ids"])
    # 1 marks what the tokenizer added; special tokens that the text itself has are 0.
    added = cast("list[int]", encoded["special_tokens_mask"])
    own = [i for i, is_added in enumerate(added) if not is_added]
    if not own:
        return ids
    first, end = own[0], own[-1] + 1
    front = ids[:first]
    return ids[first:end] if ids[first : first + first] == front else front + ids[first:end]


def decoder_after(decode: Decode, anchor: int) -> Decode:
    """Decodes tokens that stand behind other text, as a response does.

    Decoders of SentencePiece models drop the space with which a text begins; a response that begins with one would
    lose it. So they are decoded behind a token, whose own text is cut off again.

    Args:
        decode: Decodes a whole text.
        anchor: Any token that is no part of a character.
    """
    cut = len(decode([anchor]))
    return lambda ids: decode([anchor, *ids])[cut:]


def response_decoder(tokenizer: "PreTrainedTokenizerBase") -> Decode:
    """Text of response tokens, such that prompt text and response text together are what the student wrote.

    A character of which only the first bytes are there becomes one U+FFFD at the end.
    """
    whole: Any = tokenizer
    tokens: list[str] = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = cast("dict[str, int]", whole.get_vocab())
    bytes_of = {vocabulary[token]: byte for byte, token in enumerate(tokens) if token in vocabulary}

    def decode(ids: Sequence[int]) -> str:
        # A decoder of byte tokens would give up the complete characters before them too.
        cut = _unfinished([bytes_of.get(id_) for id_ in ids[-_MOST_UNFINISHED:]]) if bytes_of else 0
        known = list(ids[: len(ids) - cut])
        text = cast(str, whole.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))
        return text + CUT_CHARACTER if cut else text

    special = cast("list[int]", whole.all_special_ids)
    return decoder_after(decode, special[0] if special else 0)


def _unfinished(tail: Sequence[int | None]) -> int:
    """How many bytes at the end begin a character of UTF-8 that does not end there.

    Args:
        tail: The last bytes; None for what is no byte but text.
    """
    for count, byte in enumerate(reversed(tail), 1):
        if byte is None or byte < 0b1000_0000:
            return 0
        if byte >= 0b1100_0000:  # begins a character of 2, 3 or 4 bytes
            return count if count < 2 + (byte >= 0b1110_0000) + (byte >= 0b1111_0000) else 0
    return 0
