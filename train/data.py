"""From the shards of a round to the padded micro-batches of one rank: the same shards give the same batches.

Position i of every list of a shard is about token i. Token i is predicted by the hidden state of token i - 1, so the
rows that a micro-batch names are shifted by one. Hidden states come out of Megatron as [S, B, H], so a row's number is
position * B + sequence.
"""

import contextlib
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from ..method.objectives.record import Anchored
from ..store.errors import InputError
from .loss import LossRows
from .share import Share, context_pieces, deal
from .weights import BatchFacts

_REMAKE = "Delete the round's shards and run `omniopd score` again."

_OFFSETS = "offsets"
_FLAT: dict[str, tuple[str, type[np.generic]]] = {
    "input_ids": ("input_ids", np.int32),
    "loss_weight": ("loss_weight", np.float32),
    "audited": ("audited", np.bool_),
    "response": ("response_mask", np.bool_),
    "behaviour": ("behaviour_logprobs", np.float32),
}
"""Each field of `Sequences` with its column in the table and its type."""

COLUMNS = [column for column, _ in _FLAT.values()]
"""What `lay_out` needs of the shards table."""


@dataclass(frozen=True)
class Sequences:
    """All training sequences of a round, flat; sequence n is [offsets[n], offsets[n + 1])."""

    offsets: npt.NDArray[np.int64]
    input_ids: npt.NDArray[np.int32]
    loss_weight: npt.NDArray[np.float32]
    audited: npt.NDArray[np.bool_]
    response: npt.NDArray[np.bool_]
    behaviour: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each sequence."""
        return np.diff(self.offsets)

    def tokens_of(self, sequences: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Flat indices of all tokens of some sequences."""
        return np.concatenate([np.arange(int(self.offsets[n]), int(self.offsets[n + 1])) for n in sequences])


def lay_out(batches: Iterable[pa.RecordBatch], vocabulary: int, folder: Path) -> None:
    """Check rows of the shards table and write them flat, a file a column, which all ranks of a machine then share.

    Args:
        batches: rows of `store.schema.SHARDS`, read as they are needed.
        vocabulary: size of the student's vocabulary.
        folder: is made, and replaced if a crash left it.

    Raises:
        InputError: no rows, lists of unequal length, ids outside the vocabulary, a mask or weight that makes no sense.
        OSError: the disk is full, say, with the system's number. NumPy's own functions that write have none.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        outputs = {name: stack.enter_context((folder / name).open("wb")) for name in _FLAT}
        lengths: list[npt.NDArray[np.int64]] = []
        for batch in batches:
            part = _flat(batch)
            _check(part, vocabulary)
            lengths.append(part.lengths)
            for name, output in outputs.items():
                output.write(memoryview(getattr(part, name)))
    if not sum(map(len, lengths)):
        raise InputError("The shards have no rows: there is nothing to train on.", _REMAKE)
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    (folder / _OFFSETS).write_bytes(offsets.tobytes())


def map_sequences(folder: Path) -> Sequences:
    """What `lay_out` wrote, in the page cache and not in this process's memory."""
    flat: dict[str, Any] = {name: np.memmap(folder / name, dtype, mode="r") for name, (_, dtype) in _FLAT.items()}
    return Sequences(np.fromfile(folder / _OFFSETS, np.int64), **flat)


def _flat(batch: pa.RecordBatch) -> Sequences:
    lists: dict[str, Any] = {name: batch.column(column) for name, (column, _) in _FLAT.items()}
    lengths = [column.value_lengths().to_numpy(zero_copy_only=False) for column in lists.values()]
    if any(not np.array_equal(lengths[0], other) for other in lengths[1:]):
        raise InputError("The shards are inconsistent: lists of one row differ in length.", _REMAKE)
    offsets = np.concatenate([[0], np.cumsum(lengths[0])]).astype(np.int64)
    flat: dict[str, Any] = {
        name: column.flatten().to_numpy(zero_copy_only=False).astype(_FLAT[name][1], copy=False)
        for name, column in lists.items()
    }
    return Sequences(offsets, **flat)


def _check(shards: Sequences, vocabulary: int) -> None:
    ids, audited, response = shards.input_ids, shards.audited, shards.response
    if (shards.lengths < 1).any():
        raise InputError("The shards are inconsistent: a row has no tokens.", _REMAKE)
    if ids.min() < 0 or ids.max() >= vocabulary:
        worst = int(ids.max() if ids.max() >= vocabulary else ids.min())
        raise InputError(
            f"The shards hold token id {worst}, outside the student's vocabulary of {vocabulary}.",
            "They come from another student: set student.model back, or start a new run with `omniopd init`.",
        )
    if (audited & ~response).any() or response[shards.offsets[:-1]].any():
        raise InputError("The shards are inconsistent: a token of the prompt is marked as the response.", _REMAKE)
    if not (np.isfinite(shards.loss_weight).all() and np.isfinite(shards.behaviour).all()):
        raise InputError("The shards hold weights or log-probs that are not finite.", _REMAKE)


def plan_steps(
    sequences: int, *, global_batch: int, epochs: int, seed: int, steps: int | None
) -> list[npt.NDArray[np.int64]]:
    """Which sequences each optimizer step of a round takes.

    Every epoch is a fresh permutation that depends on the seed and the epoch alone, cut into as many global batches as
    it takes, which differ by one sequence at most: every step has the same learning rate, and a rest of one sequence
    would have it for its noise.
    """
    plan: list[npt.NDArray[np.int64]] = []
    for epoch in range(epochs):
        order = np.random.default_rng([seed, epoch]).permutation(sequences)
        plan += np.array_split(order, -(-sequences // global_batch))
    return plan[:steps]


@dataclass(frozen=True)
class MicroBatch:
    """The sequences of one forward pass: B sequences padded on the right to S tokens, or a rank's pieces of them."""

    ids_BS: Tensor
    """int64"""
    rows: LossRows
    """Rows of the hidden states, numbered position * B + sequence."""

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(self.ids_BS.to(device), LossRows(*(tensor.to(device) for tensor in self.rows)))

    def without_anchor(self) -> "MicroBatch":
        """The same with no KL term (beta is 0), so that no reference is needed."""
        return replace(self, rows=self.rows._replace(anchored_U=self.rows.anchored_U[:0]))


def micro_batches(
    shards: Sequences,
    sequences: npt.NDArray[np.int64],
    facts: BatchFacts,
    share: Share,
    *,
    micro_batch: int,
    micro_tokens: int | None = None,
    anchored: Anchored = "unaudited",
) -> list[MicroBatch]:
    """One rank's share of a global batch.

    Args:
        shards: all sequences.
        sequences: the global batch.
        facts: its `batch_facts`.
        share: which rank this is.
        micro_batch: most sequences in a micro-batch.
        micro_tokens: most positions in one, in place of `micro_batch`.
        anchored: which tokens of the response are held to the frozen model.
    """
    dealt = deal(shards.lengths, sequences, share, micro_batch=micro_batch, micro_tokens=micro_tokens)
    return [_pad(shards, part, facts.baseline, share, anchored) for part in dealt[share.rank]]


def _pad(
    shards: Sequences, sequences: Sequence[int | None], baseline: float, share: Share, anchored: Anchored
) -> MicroBatch:
    spans = [(0, 0) if n is None else (int(shards.offsets[n]), int(shards.offsets[n + 1])) for n in sequences]
    longest = max(1, *(stop - start for start, stop in spans))
    row_of = _rows_of_positions(longest, share)
    ids_BS = np.zeros((len(spans), len(row_of)), np.int64)
    rows_A: list[npt.NDArray[np.int64]] = []
    rows_U: list[npt.NDArray[np.int64]] = []
    tokens: list[npt.NDArray[np.int64]] = []
    for b, (start, stop) in enumerate(spans):
        ids_BS[b, : stop - start] = shards.input_ids[start:stop]
        (audited,) = np.nonzero(shards.audited[start:stop])
        left = anchored == "response" or ~shards.audited[start:stop]
        (free,) = np.nonzero(shards.response[start:stop] & left)
        # Token i is predicted at position i - 1, which is another rank's where row_of says -1.
        audited, free = (at[row_of[at - 1] >= 0] for at in (audited, free))
        tokens.append(start + audited)
        rows_A.append(row_of[audited - 1] * len(spans) + b)
        rows_U.append(row_of[free - 1] * len(spans) + b)
    token_A = np.concatenate(tokens)
    return MicroBatch(
        ids_BS=torch.from_numpy(ids_BS[:, row_of >= 0]),
        rows=LossRows(
            audited_A=torch.from_numpy(np.concatenate(rows_A)),
            target_A=torch.from_numpy(shards.input_ids[token_A].astype(np.int64)),
            weight_A=torch.from_numpy((shards.loss_weight[token_A] - np.float32(baseline)).astype(np.float32)),
            behaviour_A=torch.from_numpy(shards.behaviour[token_A]),
            anchored_U=torch.from_numpy(np.concatenate(rows_U)),
        ),
    )


def _rows_of_positions(longest: int, share: Share) -> npt.NDArray[np.int64]:
    """For each position of the padded sequences, its number on this rank of context parallelism, or -1."""
    length = share.padded(longest)
    if share.context_ranks == 1:
        return np.arange(length)
    row_of = np.full(length, -1)
    for i, piece in enumerate(context_pieces(share.context_rank, share.context_ranks)):
        size = length // (2 * share.context_ranks)
        row_of[piece * size : (piece + 1) * size] = np.arange(i * size, (i + 1) * size)
    return row_of
