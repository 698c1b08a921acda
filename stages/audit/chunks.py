"""From the trajectories table to the chunks table: selection, prior, and the texts around each cut.

Token lists are read where Arrow keeps them, one flat array and its offsets; Python sees trajectories and chunks, never
single tokens.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...method.peaks import Chunks, select_chunks
from ...store.sections import SelectConfig
from ...store.tokens import CUT_CHARACTER, Decode

COLUMNS = ("trajectory_id", "round", "response_ids", "logprobs", "entropies")
"""What is read of the trajectories table."""


def chunks_of(
    trajectories: pa.RecordBatch,
    select: SelectConfig,
    decode: Decode,
    clean_V: NDArray[np.bool_],
    stop_ids: frozenset[int],
) -> pa.Table:
    """Rows of the chunks table for a batch of trajectories.

    Args:
        decode: Text of response tokens.
        clean_V: Whether a chunk may start at a token (boundaries.py).
    """
    found = find_chunks(trajectories, select, clean_V, stop_ids)
    ids, entropies = _Lists.of(trajectories["response_ids"]), _Lists.of(trajectories["entropies"])
    names = trajectories["trajectory_id"].to_pylist()
    spans = list(zip(found.row.tolist(), found.start.tolist(), found.end.tolist(), strict=True))
    texts = [_texts(decode, ids.row(row), start, end) for row, start, end in spans]
    return pa.table(
        {
            "chunk_id": [_chunk_id(names[row], start, end) for row, start, end in spans],
            "trajectory_id": trajectories["trajectory_id"].take(pa.array(found.row)),
            "round": trajectories["round"].take(pa.array(found.row)),
            "rank": found.rank,
            "anchor": found.anchor,
            "start": found.start,
            "end": found.end,
            "anchor_entropy": entropies.values[entropies.first_B[found.row] + found.anchor],
            "prior": priors(_Lists.of(trajectories["logprobs"]), found),
            "prefix_text": [prefix for prefix, _ in texts],
            "chunk_text": [chunk for _, chunk in texts],
        }
    )


def whole_answers(trajectories: pa.RecordBatch) -> pa.Table:
    """Rows of the chunks table for prompts that the teacher is to answer from the start (sft): one for each, empty, so
    that what it continues is the prompt alone."""
    rows = trajectories.num_rows
    none, empty = np.zeros(rows, dtype=np.int32), [""] * rows
    return pa.table(
        {
            "chunk_id": [_chunk_id(name, 0, 0) for name in trajectories["trajectory_id"].to_pylist()],
            "trajectory_id": trajectories["trajectory_id"],
            "round": trajectories["round"],
            "rank": none,
            "anchor": none,
            "start": none,
            "end": none,
            "anchor_entropy": none.astype(np.float32),
            "prior": np.ones(rows),
            "prefix_text": empty,
            "chunk_text": empty,
        }
    )


def find_chunks(
    trajectories: pa.RecordBatch, select: SelectConfig, clean_V: NDArray[np.bool_], stop_ids: frozenset[int]
) -> Chunks:
    """The chunks of a batch of trajectories (Eq. 7), or around other peaks than those of the entropy."""
    ids = _Lists.of(trajectories["response_ids"])
    # The stop token has no text, so a text teacher cannot judge it.
    lengths_B = ids.lengths_B - np.isin(ids.values[ids.first_B + ids.lengths_B - 1], list(stop_ids))
    if select.strategy == "peak_entropy":
        scores_BT = _Lists.of(trajectories["entropies"]).padded()
    elif select.strategy == "surprisal":
        scores_BT = -_Lists.of(trajectories["logprobs"]).padded()
    else:
        scores_BT = _noise(ids.lengths_B, trajectories["trajectory_id"].to_pylist(), select.seed)
    # A vocabulary that is padded has more tokens than the tokenizer; they count as its last one.
    clean_BT = np.take(clean_V, ids.padded(), mode="clip")
    found = select_chunks(scores_BT, lengths_B, clean_BT, select.chunks, select.chunk_tokens, select.overlap)
    return found.earliest() if select.keep == "earliest" else found


@dataclass(frozen=True)
class _Lists:
    """A list column: the values of all rows in one array, and where each row's begin."""

    values: NDArray[Any]
    first_B: NDArray[np.int64]
    lengths_B: NDArray[np.int64]

    @classmethod
    def of(cls, column: Any) -> "_Lists":
        offsets = column.offsets.to_numpy().astype(np.int64)
        return cls(column.values.to_numpy(zero_copy_only=False), offsets[:-1], np.diff(offsets))

    def row(self, row: int) -> NDArray[Any]:
        return self.values[self.first_B[row] : self.first_B[row] + self.lengths_B[row]]

    def padded(self) -> NDArray[Any]:
        """[B, T], zeros after the end of each row."""
        out_BT = np.zeros((len(self.lengths_B), int(self.lengths_B.max(initial=0))), dtype=self.values.dtype)
        for row in range(len(out_BT)):
            out_BT[row, : self.lengths_B[row]] = self.row(row)
        return out_BT


def priors(logprobs: _Lists, found: Chunks) -> NDArray[np.float64]:
    """Length-normalised probability of each chunk, its tokens' geometric mean (Eq. 4)."""
    lengths = found.end - found.start
    inside: NDArray[np.int64] = np.arange(lengths.max(initial=0), dtype=np.int64)
    at = (logprobs.first_B[found.row] + found.start)[:, None] + np.minimum(inside, lengths[:, None] - 1)
    values = np.where(inside < lengths[:, None], logprobs.values[at], 0.0)
    return np.exp(values.sum(axis=1, dtype=np.float64) / lengths)


def _chunk_id(trajectory_id: str, start: int, end: int) -> str:
    return hashlib.blake2b(f"{trajectory_id}|{start}|{end}".encode(), digest_size=16).hexdigest()


def _texts(decode: Decode, ids_T: NDArray[np.int32], start: int, end: int) -> tuple[str, str]:
    """The text before a chunk, and the chunk's own."""
    ids = ids_T[:end].tolist()
    prefix = decode(ids[:start])
    return prefix, decode(ids)[len(prefix) :].rstrip(CUT_CHARACTER)


def _noise(lengths_B: NDArray[np.int64], trajectory_ids: list[str], seed: int) -> NDArray[np.float64]:
    """Random scores; a trajectory's depend on its id and the seed only, not on the batch it is in."""
    out_BT = np.zeros((len(lengths_B), int(lengths_B.max(initial=0))))
    for row, (length, trajectory_id) in enumerate(zip(lengths_B, trajectory_ids, strict=True)):
        stream = np.random.Generator(np.random.Philox(key=int(trajectory_id, 16), counter=seed))
        out_BT[row, :length] = stream.random(length)
    return out_BT
