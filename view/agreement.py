# pyright: strict
"""Where a rollout says what the chunk says. Pure."""

import re
from typing import Literal

from rapidfuzz.distance import Levenshtein

Kind = Literal["same", "other", "beyond"]

_ZERO_WIDTH_SPACE = "\u200b"
_PATTERNS = {"char": r"(?s).", "digit": "[0-9]"}


def agreement(chunk: str, rollout: str, unit: str) -> list[tuple[str, Kind]]:
    """Cut a rollout into pieces that together are its text.

    same: units that the cheapest edit from rollout to chunk keeps (Levenshtein); other: those that it does not keep;
    beyond: what comes after as many units as the chunk has, which no similarity looks at.
    """
    wanted = [chunk[start:end] for start, end in _spans(chunk, unit)]
    found = _spans(rollout, unit)
    judged = found[: len(wanted)]
    opcodes = Levenshtein.opcodes([rollout[start:end] for start, end in judged], wanted)
    kept = {i for op in opcodes if op.tag == "equal" for i in range(op.src_start, op.src_end)}
    pieces: list[tuple[str, Kind]] = []
    done = 0
    for i, (start, end) in enumerate(found):
        kind: Kind = "same" if i in kept else "other" if i < len(judged) else "beyond"
        between = rollout[done:start]
        # The space between two pieces belongs to the one that does not agree, so that no mark begins or ends with one.
        # What is more than space is no unit (digits alone may count), and agrees with nothing.
        more = between.replace(_ZERO_WIDTH_SPACE, "").strip()
        if more or (kind == "same" and pieces and between):
            _append(pieces, between, "other" if more else pieces[-1][1])
            done = start
        _append(pieces, rollout[done:end], kind)
        done = end
    if done < len(rollout):
        _append(pieces, rollout[done:], pieces[-1][1] if pieces else "other")
    return pieces


def _spans(text: str, unit: str) -> list[tuple[int, int]]:
    """Where the units of φ stand in a text (docs/similarity.md); tokens of the student are shown as words."""
    if unit in _PATTERNS:
        return [match.span() for match in re.finditer(_PATTERNS[unit], text)]
    import polars as pl

    from ..method.similarity.units import WORD_PATTERN

    spans: list[tuple[int, int]] = []
    done = 0
    # Between words there are spaces alone, so a word is first found where it was matched.
    for word in pl.Series([text]).str.extract_all(WORD_PATTERN).to_list()[0]:
        start = text.index(word, done)
        done = start + len(word)
        spans.append((start, done))
    return spans


def share(pieces: list[tuple[str, Kind]]) -> float:
    """Share of the judged characters, spaces apart, that agree."""
    count = {kind: sum(len("".join(text.split())) for text, k in pieces if k == kind) for kind in ("same", "other")}
    return count["same"] / max(count["same"] + count["other"], 1)


def _append(pieces: list[tuple[str, Kind]], text: str, kind: Kind) -> None:
    if pieces and pieces[-1][1] == kind:
        pieces[-1] = (pieces[-1][0] + text, kind)
    else:
        pieces.append((text, kind))
