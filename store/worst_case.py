# pyright: strict
"""Most that a request can cost, as far as the bills of a teacher have taught it. Pure.

A dialect's own estimate counts one token for each byte of the prompt and room for a template, which no honest server
exceeds, and n * max_tokens of completion. What is billed is some share of the estimated prompt, and a greater share of
a longer one, in which the room for the template weighs less. So once enough prompts of about a size (a quarter of an
octave) or longer were billed, the highest share among them and the shorter ones, with a margin, is the bound. What a
prompt is longer than those counts at one token a byte as before. A bill above the estimate itself raises all later
bounds at once, by the same factor.
"""

import bisect
import math

from .usage import Usage

ENOUGH = 8
"""Bills before they count as what such prompts cost."""
MARGIN = 1.5
"""On the highest share that was billed: texts differ."""


class WorstCase:
    """What the bills of one run's teacher say about its next requests."""

    def __init__(self) -> None:
        self._bills: dict[int, int] = {}
        """Bills so far, by size of the prompt."""
        self._shares: dict[int, float] = {}
        """Highest share of the estimated prompt tokens that was billed, by size of the prompt."""
        self._learned: tuple[list[int], list[float]] = [], []
        """Sizes in rising order, and the share that bounds prompts up to each. Replaced as a whole: one thread reads it
        while another learns."""
        self._highest_share = 0.0
        self._completion_overrun = 1.0

    def observe(self, estimate: Usage, billed: Usage, bills: int = 1) -> None:
        """Learn from bills.

        Args:
            estimate: The dialect's own worst case.
            billed: What was billed; the most where there are several bills.
        """
        size = _size(estimate.prompt_tokens)
        share = billed.prompt_tokens / (estimate.prompt_tokens or 1)
        before = self._bills.get(size, 0)
        self._bills[size] = before + bills
        is_higher = share > self._shares.get(size, 0.0)
        if is_higher:
            self._shares[size] = share
            self._highest_share = max(self._highest_share, share)
        if billed.completion_tokens > estimate.completion_tokens * self._completion_overrun:
            self._completion_overrun = billed.completion_tokens / (estimate.completion_tokens or 1)
        if is_higher or before < ENOUGH:
            self._learned = self._learn()

    def _learn(self) -> tuple[list[int], list[float]]:
        sizes, bounds = sorted(self._bills), list[float]()
        for place in range(len(sizes)):
            bills, up_to = 0, place
            while bills < ENOUGH and up_to < len(sizes):
                bills, up_to = bills + self._bills[sizes[up_to]], up_to + 1
            if bills < ENOUGH:
                return sizes[:place], bounds
            bounds.append(max(self._shares.get(known, 0.0) for known in sizes[:up_to]))
        return sizes, bounds

    def bound(self, estimate: Usage) -> Usage:
        """Most that a request can be billed for, given the dialect's own worst case of it."""
        estimated = estimate.prompt_tokens or 1
        prompt = self._prompt(estimated)
        completion = math.ceil((estimate.completion_tokens or 1) * self._completion_overrun)
        written = -(-estimate.cache_write_tokens * prompt // estimated)
        hour = -(-estimate.cache_write_1h_tokens * prompt // estimated)
        # Not dataclasses.replace, which takes as long as all the rest: this is done for every request.
        return Usage(prompt, estimate.cached_tokens, completion, written, hour)

    def _prompt(self, estimate: int) -> int:
        highest = self._highest_share
        most = estimate if highest <= 1 else math.ceil(estimate * highest)
        sizes, shares = self._learned
        if not sizes:
            return most
        place = bisect.bisect_left(sizes, _size(estimate))
        if place < len(sizes):
            return min(most, math.ceil(estimate * shares[place] * MARGIN))
        known = _smallest(sizes[-1])
        longer = math.ceil(known * shares[-1] * MARGIN) + estimate - known
        return min(most, max(longer, math.ceil(estimate * highest)))


def _size(tokens: int) -> int:
    """Number of the quarter octave that holds `tokens`."""
    octave = tokens.bit_length() or 1
    return 4 * octave + (tokens << 2 >> (octave - 1) & 3)


def _smallest(size: int) -> int:
    """Fewest tokens of a size."""
    octave, quarter = divmod(size, 4)
    return -(-(4 + quarter << octave - 1) // 4)
