# pyright: strict
"""What each rank takes of a global batch: which sequences share a micro-batch, and which rank has it.

The same lengths give the same micro-batches, on every rank and after a resume. Which they are changes neither loss nor
gradient but for rounding: both are sums over the tokens, divided by what the whole global batch has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MicroSequences = list[int | None]
"""Sequences of a micro-batch; None is an empty one, for a rank that would have none."""


def context_pieces(rank: int, ranks: int) -> tuple[int, int]:
    """Which two of a sequence's 2 * `ranks` equal pieces a rank of context parallelism has, as in Megatron.

    One early and one late: causal attention then costs all ranks the same.
    """
    return rank, 2 * ranks - 1 - rank


@dataclass(frozen=True)
class Share:
    """What one rank takes of a global batch."""

    rank: int = 0
    """Data-parallel rank."""
    ranks: int = 1
    context_rank: int = 0
    context_ranks: int = 1
    multiple: int = 1
    """A rank's piece of a sequence is padded to a multiple of this (sequence parallelism splits it)."""
    bucket: int = 1
    """And a whole sequence to a multiple of this: on a GPU, attention makes a plan for each length, which takes longer
    than the attention itself."""

    def padded(self, length: int) -> int:
        """Positions that a sequence of a length takes, on all context ranks together."""
        pieces = 2 * self.context_ranks if self.context_ranks > 1 else 1
        multiple = math.lcm(pieces * self.multiple, self.bucket)
        return -(-length // multiple) * multiple


def deal(
    lengths: npt.NDArray[np.int64],
    sequences: npt.NDArray[np.int64],
    share: Share,
    *,
    micro_batch: int,
    micro_tokens: int | None = None,
) -> list[list[MicroSequences]]:
    """The micro-batches of every data-parallel rank, as lists of sequences.

    Sequences next to each other in order of length share a micro-batch, so that there is little padding; longest first,
    each goes to the rank that has least work so far. Every rank gets the same number of micro-batches; where there are
    fewer sequences, some hold an empty one, None.

    Args:
        lengths: of all sequences, tokens.
        sequences: the global batch.
        share: how many ranks there are, and how they pad.
        micro_batch: most sequences in a micro-batch.
        micro_tokens: most positions of a micro-batch on a rank, padding included, in place of `micro_batch`. A longer
            sequence is alone. There are as few micro-batches as that allows, cut with as little padding as can be.
    """
    by_length = sequences[np.argsort(-lengths[sequences], kind="stable")]
    if micro_tokens is None:
        turns = -(-len(sequences) // (share.ranks * micro_batch))
        count = turns * share.ranks
        sizes = np.diff(np.arange(count + 1) * len(sequences) // count).tolist()
    else:
        padded = [share.padded(int(length)) for length in lengths[by_length]]
        budget = micro_tokens * share.context_ranks
        turns = -(-_fewest(padded, budget) // share.ranks)
        sizes = _least_padding(padded, budget, min(turns * share.ranks, len(sequences)))
        sizes += [0] * (turns * share.ranks - len(sizes))
    dealt: list[list[MicroSequences]] = [[] for _ in range(share.ranks)]
    work = [0] * share.ranks
    start = 0
    for size in sizes:
        batch: MicroSequences = [*by_length[start : start + size].tolist()] or [None]
        start += size
        rank = min((r for r in range(share.ranks) if len(dealt[r]) < turns), key=lambda r: work[r])
        dealt[rank].append(batch)
        work[rank] += _positions(lengths, batch, share)
    return dealt


def _fewest(padded: Sequence[int], budget: int) -> int:
    """Micro-batches that sequences need at least, given longest first, none with more positions than `budget`."""
    count = at = 0
    while at < len(padded):
        at += max(1, budget // padded[at])
        count += 1
    return count


def _least_padding(padded: Sequence[int], budget: int, count: int) -> list[int]:
    """Sizes of `count` micro-batches of sequences that are given longest first, with the fewest positions in all.

    best[i] is what the first i sequences take in g micro-batches, for g = 1, 2, ... The last of them has `size`
    sequences, as long as the first of these.
    """
    n = len(padded)
    longest = np.array(padded, np.float64)
    most = np.maximum(1, budget // np.array(padded))
    best = np.full(n + 1, np.inf)
    best[0] = 0
    chosen = np.zeros((count, n + 1), np.int64)
    for g in range(count):
        row = np.full(n + 1, np.inf)
        for size in range(1, int(most.max()) + 1):
            if size > n:
                break
            # One of this size that begins at each place where it is allowed to.
            takes = np.where(
                size <= most[: n - size + 1], best[: n - size + 1] + size * longest[: n - size + 1], np.inf
            )
            better = takes < row[size:]
            row[size:][better] = takes[better]
            chosen[g, size:][better] = size
        best = row
    sizes: list[int] = []
    at = n
    for g in reversed(range(count)):
        sizes.append(int(chosen[g, at]))
        at -= sizes[-1]
    return sizes[::-1]


def _positions(lengths: npt.NDArray[np.int64], batch: MicroSequences, share: Share) -> int:
    """Positions of a micro-batch, padding included; an empty sequence is padded from one position."""
    return len(batch) * share.padded(max(1 if n is None else int(lengths[n]) for n in batch))


def padding_share(
    lengths: npt.NDArray[np.int64],
    sequences: npt.NDArray[np.int64],
    share: Share,
    *,
    micro_batch: int,
    micro_tokens: int | None = None,
) -> float:
    """Share of the positions of a global batch's micro-batches that are padding."""
    dealt = deal(lengths, sequences, share, micro_batch=micro_batch, micro_tokens=micro_tokens)
    computed = sum(_positions(lengths, batch, share) for part in dealt for batch in part)
    return 1 - int(lengths[sequences].sum()) / computed
