# pyright: strict
"""Does the teacher's answer vary? A server that ignores temperature, or that caches answers, gives N times the same; so
does a teacher that is certain, which no answer tells from the others."""

import sys
from collections.abc import Iterable

_CHUNKS = 10
_TEXTS = 30
"""Chunks in a row, and rollouts in them, that are alike within each chunk before that is said: two alike, as an
adaptive audit asks for, say little."""


class VarietyWatch:
    """Says so, once, when the rollouts of chunk after chunk are identical.

    Args:
        temperature: Of the teacher; at 0 they are meant to be.
    """

    def __init__(self, temperature: float) -> None:
        self._watches = temperature > 0
        self._chunks = self._texts = 0

    def saw(self, texts: Iterable[str | None]) -> None:
        """Take in the texts that came for one chunk; None and "" say nothing about it."""
        some = [text for text in texts if text]
        if not self._watches or len(some) < 2:
            return
        if len(set(some)) > 1:
            self._chunks = self._texts = 0
            return
        self._chunks, self._texts = self._chunks + 1, self._texts + len(some)
        if self._chunks >= _CHUNKS and self._texts >= _TEXTS:
            self._watches = False
            sys.stderr.write(
                f"the rollouts of the last {self._chunks} chunks are identical within each chunk: either the teacher is"
                " certain there, or its server ignores temperature or caches answers; N such rollouts tell no more than"
                " one\n"
            )
