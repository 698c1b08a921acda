"""Chunk selection beside a slow reference that follows §3.2.3 word by word."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.method.peaks import select_chunks


def reference(scores, clean, chunks, c, overlap):
    """One row at a time, one anchor at a time."""
    length = len(scores)

    def window(anchor):
        start = min(anchor, max(length - c, 0))
        moved = max(s for s in range(start + 1) if clean[s] or s == 0)
        start = moved if moved + c > anchor else start
        return start, min(start + c, length)

    chosen = []
    for anchor in sorted(range(length), key=lambda t: (-scores[t], t)):
        if len(chosen) == chunks:
            break
        start, end = window(anchor)
        if overlap == "merge" or all(abs(start - s) >= c for _, s, _ in chosen):
            chosen.append((anchor, start, end))
    if overlap == "merge":
        merged = []
        for rank, (anchor, start, end) in sorted(enumerate(chosen), key=lambda item: item[1][1]):
            if merged and start < merged[-1][3]:
                best = min(merged[-1][:2], (rank, anchor))
                merged[-1] = (*best, merged[-1][2], max(end, merged[-1][3]))
            else:
                merged.append((rank, anchor, start, end))
        chosen = [(anchor, start, end) for _, anchor, start, end in sorted(merged)]
    return [(rank, *chunk) for rank, chunk in enumerate(chosen)]


@st.composite
def batches(draw):
    lengths = draw(st.lists(st.integers(0, 25), min_size=1, max_size=4))
    width = max([*lengths, 1])
    # A few distinct values, so that ties are common.
    score = st.integers(0, 6).map(float)
    scores = np.array([draw(st.lists(score, min_size=width, max_size=width)) for _ in lengths])
    clean = np.array([draw(st.lists(st.booleans(), min_size=width, max_size=width)) for _ in lengths])
    return scores, np.array(lengths), clean


@given(batches(), st.integers(1, 6), st.integers(1, 9), st.sampled_from(["resample", "merge"]))
def test_selection_equals_the_reference(batch, chunks, c, overlap):
    scores, lengths, clean = batch
    found = select_chunks(scores, lengths, clean, chunks, c, overlap)
    for row, length in enumerate(lengths):
        mine = [tuple(map(int, t)) for t in zip(found.rank, found.anchor, found.start, found.end, strict=True)]
        mine = [t for t, r in zip(mine, found.row, strict=True) if r == row]
        assert mine == reference(scores[row, :length].tolist(), clean[row].tolist(), chunks, c, overlap)


@given(batches(), st.integers(1, 6), st.integers(1, 9))
def test_chunks_keep_their_length_hold_their_anchor_and_do_not_overlap(batch, chunks, c):
    scores, lengths, clean = batch
    found = select_chunks(scores, lengths, clean, chunks, c, "resample")
    assert ((found.start <= found.anchor) & (found.anchor < found.end)).all()
    assert (found.end - found.start == np.minimum(c, lengths[found.row])).all()
    for row in range(len(lengths)):
        spans = sorted(zip(found.start[found.row == row], found.end[found.row == row], strict=True))
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


def test_the_anchor_starts_the_chunk_and_the_last_chunk_is_moved_left():
    scores = np.array([[0, 9, 0, 0, 0, 0, 0, 8]], dtype=float)
    found = select_chunks(scores, np.array([8]), np.ones((1, 8), bool), 2, 3, "resample")
    assert list(zip(found.anchor, found.start, found.end, strict=True)) == [(1, 1, 4), (7, 5, 8)]


def test_a_response_shorter_than_a_chunk_is_one_shorter_chunk():
    found = select_chunks(np.array([[1.0, 5.0]]), np.array([2]), np.ones((1, 2), bool), 10, 50, "resample")
    assert (found.start.tolist(), found.end.tolist()) == ([0], [2])


@pytest.mark.parametrize("overlap", ["resample", "merge"])
def test_an_empty_response_has_no_chunk(overlap):
    found = select_chunks(np.zeros((2, 0)), np.array([0, 0]), np.ones((2, 0), bool), 3, 5, overlap)
    assert len(found.row) == 0


@given(batches(), st.integers(1, 6), st.integers(1, 9), st.sampled_from(["resample", "merge"]))
def test_earliest_is_each_row_s_chunk_with_the_smallest_start_and_keeps_its_rank(batch, chunks, c, overlap):
    found = select_chunks(*batch, chunks, c, overlap)
    rows = zip(found.row, found.start, found.rank, found.anchor, found.end, strict=True)
    by_row = itertools.groupby(rows, key=lambda chunk: chunk[0])
    kept = found.earliest()
    assert list(zip(kept.row, kept.start, kept.rank, kept.anchor, kept.end, strict=True)) == [
        min(group) for _, group in by_row
    ]
