# pyright: strict
"""Peak-entropy chunk selection (Eq. 7, §3.2.3). Pure: arrays in, arrays out, a whole batch of trajectories at a time.

Shapes: B trajectories, T tokens of the longest response (shorter ones are padded), M chunks.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_BLOCK = 64
"""Tokens whose highest score is remembered."""

_NOWHERE = -(2**40)


@dataclass(frozen=True)
class Chunks:
    """Selected chunks of a batch, one entry a chunk, ordered by row and then by rank."""

    row: NDArray[np.int64]
    """Which trajectory of the batch."""
    rank: NDArray[np.int64]
    """0 = highest score of the trajectory."""
    anchor: NDArray[np.int64]
    """Token index of the peak."""
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    """Half-open window of token indices."""

    def earliest(self) -> "Chunks":
        """Of each trajectory's chunks, the one that comes first in the response."""
        order = np.lexsort((self.start, self.row))
        _, first = np.unique(self.row[order], return_index=True)
        kept = order[first]
        return Chunks(self.row[kept], self.rank[kept], self.anchor[kept], self.start[kept], self.end[kept])


def select_chunks(
    scores_BT: NDArray[np.floating],
    lengths_B: NDArray[np.int64],
    starts_clean_BT: NDArray[np.bool_],
    chunks: int,
    chunk_tokens: int,
    overlap: Literal["resample", "merge"],
) -> Chunks:
    """Choose up to `chunks` windows of `chunk_tokens` tokens around the highest scores of each row.

    A window starts at its anchor. Near the end it is moved left, so that it keeps its length and its anchor; a
    response shorter than a window becomes one shorter window. A window may start only at a clean token (one that
    does not begin inside a character), the nearest to the left; if that one is so far off that the window would lose
    its anchor, the window starts at the anchor.

    Overlaps: `resample` takes the highest peaks greedily and skips those whose window would overlap a chosen one;
    `merge` takes the M highest peaks and joins windows that overlap, so there may be fewer and longer chunks.

    Args:
        scores_BT: Entropies (peak_entropy), negative log-probs (surprisal), or random numbers (uniform). Padding is
            ignored.
        lengths_B: Auditable tokens of each row.
        starts_clean_BT: Whether a window may start at a token.
    """
    peaks = _Peaks.of(scores_BT, lengths_B, starts_clean_BT, chunk_tokens)
    anchors_BM, starts_BM = peaks.take(chunks, skip_overlaps=overlap == "resample")
    row, rank = np.nonzero(anchors_BM >= 0)
    start = starts_BM[row, rank]
    end = np.minimum(start + chunk_tokens, lengths_B[row])
    found = Chunks(row, rank, anchors_BM[row, rank], start, end)
    return _merge(found) if overlap == "merge" and len(row) else found


@dataclass(frozen=True)
class _Peaks:
    """The scores that are still to be had, and the highest of each block of them.

    The next peak of a row is the highest of its blocks' highest; after it is taken, only the few blocks around it are
    looked through again. So M peaks cost one pass over the tokens, not M.

    Shapes: P padded tokens (a margin on both sides, so that windows may reach over the ends), K blocks of P, N
    neighbouring tokens.
    """

    scores_BP: NDArray[np.floating]
    clean_BP: NDArray[np.bool_]
    highest_BK: NDArray[np.floating]
    lengths_B: NDArray[np.int64]
    chunk_tokens: int
    margin: int

    @classmethod
    def of(
        cls,
        scores_BT: NDArray[np.floating],
        lengths_B: NDArray[np.int64],
        clean_BT: NDArray[np.bool_],
        chunk_tokens: int,
    ) -> "_Peaks":
        rows, width = scores_BT.shape
        margin = 2 * chunk_tokens
        # The block after the last is there to be looked into beside it.
        padded = (width + 2 * margin) // _BLOCK * _BLOCK + 2 * _BLOCK
        scores_BP = np.full((rows, padded), -np.inf, dtype=scores_BT.dtype)
        scores_BP[:, margin : margin + width] = scores_BT
        scores_BP[:, margin : margin + width][np.arange(width) >= lengths_B[:, None]] = -np.inf
        clean_BP = np.zeros((rows, padded), dtype=np.bool_)
        clean_BP[:, margin : margin + width] = clean_BT
        clean_BP[:, margin] = True  # a text may always be cut before its first token
        highest_BK = scores_BP.reshape(rows, -1, _BLOCK).max(axis=2)
        return cls(scores_BP, clean_BP, highest_BK, lengths_B, chunk_tokens, margin)

    def take(self, chunks: int, *, skip_overlaps: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Anchors in falling order of score and the starts of their windows [B, M], -1 where a row has no more."""
        anchors_BM = np.full((len(self.lengths_B), chunks), -1, dtype=np.int64)
        starts_BM = anchors_BM.copy()
        for m in range(chunks):
            anchors_B, scores_B = self._highest()
            found_B = scores_B > -np.inf
            if not found_B.any():
                break
            starts_B = self._starts(anchors_B, 1)[:, 0]
            anchors_BM[found_B, m] = anchors_B[found_B]
            starts_BM[found_B, m] = starts_B[found_B]
            if skip_overlaps:
                # Windows start at their anchor or less than C tokens before it.
                first_B, count = starts_B - self.chunk_tokens + 1, 3 * self.chunk_tokens - 2
                overlaps_BN = np.abs(self._starts(first_B, count) - starts_B[:, None]) < self.chunk_tokens
                self._strike(first_B, overlaps_BN)
            else:
                self._strike(anchors_B, np.ones((len(anchors_B), 1), dtype=np.bool_))
        return anchors_BM, starts_BM

    def _highest(self) -> tuple[NDArray[np.int64], NDArray[np.floating]]:
        """Position and score of the highest score of each row, the first of equals."""
        rows_B = np.arange(len(self.lengths_B))
        blocks_B = self.highest_BK.argmax(axis=1)
        inside_B = self.scores_BP.reshape(len(rows_B), -1, _BLOCK)[rows_B, blocks_B].argmax(axis=1)
        return blocks_B * _BLOCK + inside_B - self.margin, self.highest_BK[rows_B, blocks_B]

    def _starts(self, first_B: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """Starts of the windows of `count` neighbouring anchors, from `first_B` on [B, N].

        An anchor that lies outside of the response gets some number.
        """
        offsets_N: NDArray[np.int64] = np.arange(count, dtype=np.int64)
        anchors_BN = first_B[:, None] + offsets_N
        raw_BN = np.minimum(anchors_BN, np.maximum(self.lengths_B - self.chunk_tokens, 0)[:, None])
        # The nearest clean token, looked for as far back as a window that keeps the anchor may start.
        origin_B = first_B - self.chunk_tokens + 1
        around_BN = origin_B[:, None] + np.arange(count + self.chunk_tokens - 1, dtype=np.int64)
        clean_BN = np.take_along_axis(self.clean_BP, self._padded(around_BN), axis=1)
        nearest_BN = np.maximum.accumulate(np.where(clean_BN, around_BN, _NOWHERE), axis=1)
        at_BN = np.clip(raw_BN - origin_B[:, None], 0, around_BN.shape[1] - 1)
        moved_BN = np.take_along_axis(nearest_BN, at_BN, axis=1)
        return np.where(moved_BN + self.chunk_tokens > anchors_BN, moved_BN, raw_BN)

    def _strike(self, first_B: NDArray[np.int64], struck_BN: NDArray[np.bool_]) -> None:
        """Take scores out, from position `first_B` of each row on."""
        rows_B1 = np.arange(len(first_B))[:, None]
        at_BN = self._padded(first_B[:, None] + np.arange(struck_BN.shape[1], dtype=np.int64))
        self.scores_BP[rows_B1, at_BN] = np.where(struck_BN, -np.inf, self.scores_BP[rows_B1, at_BN])
        blocks = struck_BN.shape[1] // _BLOCK + 2
        near_BK = at_BN[:, :1] // _BLOCK + np.arange(blocks, dtype=np.int64)
        blocks_BK = np.minimum(near_BK, self.highest_BK.shape[1] - 1)
        scores_BKP = self.scores_BP.reshape(len(first_B), -1, _BLOCK)
        self.highest_BK[rows_B1, blocks_BK] = scores_BKP[rows_B1, blocks_BK].max(axis=2)

    def _padded(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.clip(positions + self.margin, 0, self.scores_BP.shape[1] - 1)


def _merge(chunks: Chunks) -> Chunks:
    """Join overlapping windows of a row; a joined chunk has the anchor and the rank of its best member."""
    by_start = np.lexsort((chunks.start, chunks.row))
    row, rank, anchor = chunks.row[by_start], chunks.rank[by_start], chunks.anchor[by_start]
    start, end = chunks.start[by_start], chunks.end[by_start]
    # All windows of a row that are not cut at its end have one length, so ends rise with starts.
    first = np.ones(len(row), dtype=np.bool_)
    first[1:] = (row[1:] != row[:-1]) | (start[1:] >= end[:-1])
    group = np.cumsum(first) - 1
    best = np.lexsort((rank, group))[np.flatnonzero(first)]
    last = np.append(np.flatnonzero(first)[1:], len(row)) - 1
    merged = Chunks(row[best], rank[best], anchor[best], start[first], end[last])
    order = np.lexsort((merged.rank, merged.row))
    row = merged.row[order]
    new_rank = np.arange(len(row)) - np.searchsorted(row, row)
    return Chunks(row, new_rank, merged.anchor[order], merged.start[order], merged.end[order])
