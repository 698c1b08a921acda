# pyright: strict
"""From a prompt's text to tokens, and from a response's tokens to text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    """Text of response tokens, such that prompt text and response text together are what the student wrote."""
    whole: Any = tokenizer

    def decode(ids: Sequence[int]) -> str:
        return whole.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    special = cast("list[int]", whole.all_special_ids)
    return decoder_after(decode, special[0] if special else 0)
