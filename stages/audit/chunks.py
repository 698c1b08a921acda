"""From the trajectories table to the chunks table: selection, prior, and the texts around each cut."""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...store.config import SelectConfig
from .boundaries import clean_start_table
from .select import Chunks, select_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CUT_CHARACTER = "\ufffd"
"""What a decoder writes for half a character."""


def chunks_of(
    trajectories: pa.RecordBatch, select: SelectConfig, tokenizer: "PreTrainedTokenizerBase", stop_ids: frozenset[int]
) -> list[dict[str, Any]]:
    """Rows of the chunks table for a batch of trajectories."""
    ids = [np.asarray(row, dtype=np.int64) for row in trajectories["response_ids"].to_pylist()]
    logprobs = trajectories["logprobs"].to_pylist()
    entropies_BT = _padded(trajectories["entropies"].to_pylist())
    clean_V = clean_start_table(tokenizer, select.boundary)
    clean_BT = np.zeros(entropies_BT.shape, dtype=np.bool_)
    for row, row_ids in enumerate(ids):
        clean_BT[row, : len(row_ids)] = clean_V[row_ids]
    # The stop token has no text, so a text teacher cannot judge it.
    lengths_B = np.array([len(row) - (row[-1] in stop_ids) for row in ids])
    trajectory_ids = trajectories["trajectory_id"].to_pylist()
    scores_BT = entropies_BT if select.strategy == "peak_entropy" else _noise(entropies_BT, trajectory_ids, select.seed)
    found = select_chunks(scores_BT, lengths_B, clean_BT, select.chunks, select.chunk_tokens, select.overlap)
    rounds = trajectories["round"].to_pylist()
    return [
        _row(found, i, trajectory_ids[row], rounds[row], ids[row], logprobs[row], entropies_BT[row], tokenizer)
        for i, row in enumerate(found.row)
    ]


def _row(
    found: Chunks, i: int, trajectory_id: str, round_: int, ids_T: NDArray[np.int64], logprobs_T: list[float],
    entropies_T: NDArray[np.float64], tokenizer: "PreTrainedTokenizerBase",
) -> dict[str, Any]:  # fmt: skip
    start, end, anchor = int(found.start[i]), int(found.end[i]), int(found.anchor[i])
    prefix = _decode(tokenizer, ids_T[:start])
    return {
        "chunk_id": hashlib.blake2b(f"{trajectory_id}|{start}|{end}".encode(), digest_size=16).hexdigest(),
        "trajectory_id": trajectory_id,
        "round": round_,
        "rank": int(found.rank[i]),
        "anchor": anchor,
        "start": start,
        "end": end,
        "anchor_entropy": float(entropies_T[anchor]),
        "prior": prior(np.asarray(logprobs_T[start:end])),
        "prefix_text": prefix,
        # Decoded together with the prefix: some decoders write a token's leading space only after another token.
        "chunk_text": _decode(tokenizer, ids_T[:end])[len(prefix) :].rstrip(_CUT_CHARACTER),
    }


def prior(logprobs_C: NDArray[np.float64]) -> float:
    """Length-normalised probability of a chunk, its tokens' geometric mean (Eq. 4)."""
    return float(np.exp(logprobs_C.mean()))


def _decode(tokenizer: "PreTrainedTokenizerBase", ids_T: NDArray[np.int64]) -> str:
    text = tokenizer.decode(ids_T.tolist(), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _padded(rows: list[list[float]]) -> NDArray[np.float64]:
    out_BT = np.zeros((len(rows), max(len(row) for row in rows)))
    for i, row in enumerate(rows):
        out_BT[i, : len(row)] = row
    return out_BT


def _noise(like_BT: NDArray[np.float64], trajectory_ids: list[str], seed: int) -> NDArray[np.float64]:
    """Random scores; a trajectory's depend on its id and the seed only, not on the batch it is in."""
    out_BT = np.zeros_like(like_BT)
    for row, trajectory_id in enumerate(trajectory_ids):
        stream = np.random.Generator(np.random.Philox(key=int(trajectory_id, 16), counter=seed))
        out_BT[row] = stream.random(like_BT.shape[1])
    return out_BT
