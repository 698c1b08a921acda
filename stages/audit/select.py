# pyright: strict
"""Peak-entropy chunk selection (Eq. 7, §3.2.3). Pure: arrays in, arrays out, a whole batch of trajectories at a time.

Shapes: B trajectories, T tokens of the longest response (shorter ones are padded), M chunks.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray


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


def select_chunks(
    scores_BT: NDArray[np.float64],
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
        scores_BT: Entropies (peak_entropy), or random numbers (uniform). Padding is ignored.
        lengths_B: Auditable tokens of each row.
        starts_clean_BT: Whether a window may start at a token.
    """
    positions_T: NDArray[np.int64] = np.arange(scores_BT.shape[1], dtype=np.int64)
    scores_BT = np.where(positions_T < lengths_B[:, None], scores_BT, -np.inf)
    starts_BT = _starts(lengths_B, starts_clean_BT, chunk_tokens)
    anchors_BM = _peaks(scores_BT, starts_BT, chunks, chunk_tokens, skip_overlaps=overlap == "resample")
    row, rank = np.nonzero(anchors_BM >= 0)
    anchor = anchors_BM[row, rank]
    start = starts_BT[row, anchor]
    end = np.minimum(start + chunk_tokens, lengths_B[row])
    found = Chunks(row, rank, anchor, start, end)
    return _merge(found) if overlap == "merge" and len(row) else found


def _starts(lengths_B: NDArray[np.int64], clean_BT: NDArray[np.bool_], chunk_tokens: int) -> NDArray[np.int64]:
    """Start of the window of each possible anchor [B, T]."""
    positions_T: NDArray[np.int64] = np.arange(clean_BT.shape[1], dtype=np.int64)
    last_B = np.maximum(lengths_B - chunk_tokens, 0)
    raw_BT = np.minimum(positions_T[None, :], last_B[:, None])
    # Index of the nearest clean token at or left of each token; token 0 is always clean.
    nearest_BT = np.maximum.accumulate(np.where(clean_BT, positions_T[None, :], 0), axis=1)
    moved_BT = np.take_along_axis(nearest_BT, raw_BT, axis=1)
    return np.where(moved_BT + chunk_tokens > positions_T[None, :], moved_BT, raw_BT)


def _peaks(
    scores_BT: NDArray[np.float64], starts_BT: NDArray[np.int64], chunks: int, chunk_tokens: int, *, skip_overlaps: bool
) -> NDArray[np.int64]:
    """Anchors in falling order of score [B, M], -1 where a row has no more."""
    scores_BT = scores_BT.copy()
    rows_B = np.arange(len(scores_BT))
    anchors_BM = np.full((len(scores_BT), chunks), -1, dtype=np.int64)
    for m in range(chunks if scores_BT.shape[1] else 0):
        anchors_B = scores_BT.argmax(axis=1)
        found_B = scores_BT[rows_B, anchors_B] > -np.inf
        if not found_B.any():
            break
        anchors_BM[found_B, m] = anchors_B[found_B]
        if skip_overlaps:
            starts_B = starts_BT[rows_B, anchors_B]
            scores_BT[np.abs(starts_BT - starts_B[:, None]) < chunk_tokens] = -np.inf
        else:
            scores_BT[rows_B, anchors_B] = -np.inf
    return anchors_BM


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
