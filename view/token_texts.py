# pyright: strict
"""A response as its tokens' texts with their entropies: what a reader sees coloured. Pure, given a decoder."""

from collections.abc import Sequence

from ..store.tokens import Decode

_LONGEST = 16
"""Tokens that one piece may take: some write a character in several."""


def pieces(text: str, ids: Sequence[int], entropies: Sequence[float], decode: Decode | None) -> list[tuple[str, float]]:
    """Texts that together are `text`, each with the highest entropy of its tokens (nats).

    A token whose text is half a character is taken together with the next. Without a decoder, or from where the tokens
    do not give the text, the rest is one piece of entropy 0.
    """
    out: list[tuple[str, float]] = []
    done, held, highest = 0, list[int](), 0.0
    if decode is None:
        return [(text, 0.0)] if text else []
    for id_, entropy in zip(ids, entropies, strict=True):
        if done == len(text) or len(held) == _LONGEST:
            break
        held.append(id_)
        highest = max(highest, entropy)
        piece = decode(held)
        if piece and text.startswith(piece, done):
            out.append((piece, highest))
            done, held, highest = done + len(piece), [], 0.0
    if done < len(text):
        out.append((text[done:], 0.0))
    return out
