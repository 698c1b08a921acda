# pyright: strict
"""Where a rollout says what the chunk says. Pure."""

import re
from typing import Literal

from rapidfuzz.distance import Levenshtein

Kind = Literal["same", "other", "beyond"]

_UNITS = {"word": re.compile(r"\w+|[^\w\s]"), "char": re.compile(r"(?s)."), "digit": re.compile("[0-9]")}
"""What φ counts (stages/similarity); tokens of the student are shown as words."""


def agreement(chunk: str, rollout: str, unit: str) -> list[tuple[str, Kind]]:
    """Cut a rollout into pieces that together are its text.

    same: units that the cheapest edit from rollout to chunk keeps (Levenshtein); other: those that it does not keep;
    beyond: what comes after as many units as the chunk has, which no similarity looks at.
    """
    pattern = _UNITS.get(unit, _UNITS["word"])
    wanted, found = pattern.findall(chunk), list(pattern.finditer(rollout))
    judged = found[: len(wanted)]
    opcodes = Levenshtein.opcodes([match[0] for match in judged], wanted)
    kept = {i for op in opcodes if op.tag == "equal" for i in range(op.src_start, op.src_end)}
    pieces: list[tuple[str, Kind]] = []
    done = 0
    for i, match in enumerate(found):
        kind: Kind = "same" if i in kept else "other" if i < len(judged) else "beyond"
        between = rollout[done : match.start()]
        # The space between two pieces belongs to the one that does not agree, so that no mark begins or ends with one.
        # What is more than space is no unit (digits alone may count), and agrees with nothing.
        if between.strip() or (kind == "same" and pieces and between):
            _append(pieces, between, "other" if between.strip() else pieces[-1][1])
            done = match.start()
        _append(pieces, rollout[done : match.end()], kind)
        done = match.end()
    if done < len(rollout):
        _append(pieces, rollout[done:], pieces[-1][1] if pieces else "other")
    return pieces


def share(pieces: list[tuple[str, Kind]]) -> float:
    """Share of the judged characters, spaces apart, that agree."""
    count = {kind: sum(len("".join(text.split())) for text, k in pieces if k == kind) for kind in ("same", "other")}
    return count["same"] / max(count["same"] + count["other"], 1)


def _append(pieces: list[tuple[str, Kind]], text: str, kind: Kind) -> None:
    if pieces and pieces[-1][1] == kind:
        pieces[-1] = (pieces[-1][0] + text, kind)
    else:
        pieces.append((text, kind))
