# pyright: strict
"""Most that a request can cost, as far as the bills of a teacher have taught it. Pure.

A dialect's own estimate counts one token for each byte of the prompt and room for a template, which no honest server
exceeds, and n * max_tokens of completion. Prompts of about one size (a quarter of an octave) come to a few tokens for
each ten of it, so that once enough of them were billed, the highest share among them, with a margin, is the bound.
A bill above the estimate itself raises all later bounds at once, by the same factor.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ledger import Usage

ENOUGH = 8
"""Bills for prompts of one size before they count as what such prompts cost."""
MARGIN = 1.5
"""On the highest share that was billed: texts differ."""


class WorstCase:
    """What the bills of one run's teacher say about its next requests."""

    def __init__(self) -> None:
        self._bills: dict[int, int] = {}
        """Bills so far, by size of the prompt."""
        self._shares: dict[int, float] = {}
        """Highest share of the estimated prompt tokens that was billed, by size of the prompt."""
        self._learned: dict[int, float] = {}
        """The same for the sizes that have bills enough; a smaller prompt's share counts for the larger ones too.
        Replaced as a whole: one thread reads it while another learns."""
        self._prompt_overrun = self._completion_overrun = 1.0

    def observe(self, estimate: "Usage", billed: "Usage", bills: int = 1) -> None:
        """Learn from bills.

        Args:
            estimate: The dialect's own worst case.
            billed: What was billed; the most where there are several bills.
        """
        size = _size(estimate.prompt_tokens)
        share = billed.prompt_tokens / max(1, estimate.prompt_tokens)
        before = self._bills.get(size, 0)
        self._bills[size] = before + bills
        is_higher = share > self._shares.get(size, 0.0)
        if is_higher:
            self._shares[size] = share
            self._prompt_overrun = max(self._prompt_overrun, share)
        self._completion_overrun = max(
            self._completion_overrun, billed.completion_tokens / max(1, estimate.completion_tokens)
        )
        if is_higher or before < ENOUGH:
            self._learned = {
                known: max(share for other, share in self._shares.items() if other <= known)
                for known, seen in self._bills.items()
                if seen >= ENOUGH and known in self._shares
            }

    def bound(self, estimate: "Usage") -> "Usage":
        """Most that a request can be billed for, given the dialect's own worst case of it."""
        prompt = math.ceil(max(1, estimate.prompt_tokens) * self._prompt_overrun)
        share = self._learned.get(_size(estimate.prompt_tokens))
        if share is not None:
            prompt = min(prompt, math.ceil(max(1, estimate.prompt_tokens) * share * MARGIN))
        written = -(-estimate.cache_write_tokens * prompt // max(1, estimate.prompt_tokens))
        completion = math.ceil(max(1, estimate.completion_tokens) * self._completion_overrun)
        return replace(estimate, prompt_tokens=prompt, completion_tokens=completion, cache_write_tokens=written)


def _size(tokens: int) -> int:
    """Number of the quarter octave that holds `tokens`."""
    octave = max(1, tokens).bit_length()
    return 4 * octave + (tokens << 2 >> (octave - 1) & 3)
