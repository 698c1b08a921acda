"""Shards to micro-batches: nothing is lost, doubled or shifted."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from omniopd.store.errors import InputError
from omniopd.store.schema import SHARDS
from omniopd.store.storage import storage_error
from omniopd.train.data import (
    COLUMNS,
    Sequences,
    lay_out,
    map_sequences,
    micro_batches,
    plan_steps,
)
from omniopd.train.share import Share, padding_share
from omniopd.train.weights import BatchFacts, batch_facts
from support import training as kit
from support.disks import mounted


def read(rows: list[dict[str, Any]], vocabulary: int = 97) -> Sequences:
    batches = pa.Table.from_pylist(rows, schema=SHARDS.schema).to_batches(max_chunksize=2)
    with tempfile.TemporaryDirectory() as folder:
        lay_out(batches, vocabulary, Path(folder) / "shards")
        return map_sequences(Path(folder) / "shards")


def test_a_full_disk_is_the_systems_error_whichever_column_it_stops(tmp_path: Path) -> None:
    batches = pa.Table.from_pylist(kit.shard_rows(400), schema=SHARDS.schema).to_batches()
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=16m", "tmpfs") as folder:
        lay_out(batches, 97, folder / "shards")
        size = sum(path.stat().st_size for path in (folder / "shards").iterdir())
    for room in (size // 3, size - 4096):
        with mounted(tmp_path / f"of {room}", "-t", "tmpfs", "-o", f"size={room // 4096 * 4096}", "tmpfs") as folder:
            with pytest.raises(OSError, match="No space left on device") as caught:
                lay_out(batches, 97, folder / "shards")
            assert storage_error(caught.value) is not None


def facts_of(shards: Sequences, **options: Any) -> BatchFacts:
    options = {"centre": "none", "normalise": "audited_tokens"} | options
    return batch_facts(shards.loss_weight, shards.audited, shards.response, **options)


@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 3),
    st.sampled_from([1, 8]),
)  # fmt: skip
def test_every_weighted_token_is_in_one_micro_batch_of_one_rank(
    sequences: int, ranks: int, micro_batch: int, multiple: int, context: int, bucket: int
) -> None:
    shards = read(kit.shard_rows(sequences, seed=sequences))
    order = np.arange(sequences)
    facts = facts_of(shards)
    parts = [
        [
            micro_batches(shards, order, facts, Share(r, ranks, c, context, multiple, bucket), micro_batch=micro_batch)
            for c in range(context)
        ]
        for r in range(ranks)
    ]
    assert len({len(batches) for part in parts for batches in part}) == 1
    audited: list[tuple[int, float, float]] = []
    anchored = 0
    for pieces in (pieces for part in parts for pieces in zip(*part, strict=True)):
        # What the context ranks have of one micro-batch: pieces 0, 2n - 1 | 1, 2n - 2 | ..., which are put in order.
        size, length = pieces[0].ids_BS.shape
        assert size <= micro_batch
        assert length % multiple == 0
        halves = [piece.ids_BS.chunk(2, 1) if context > 1 else (piece.ids_BS,) for piece in pieces]
        whole = torch.cat([half[0] for half in halves] + [half[-1] for half in reversed(halves)][: context**2 - 1], 1)
        for c, piece in enumerate(pieces):
            rows, at = piece.rows, piece.rows.audited_A // size
            half = length // 2
            late = at >= half
            position = torch.where(late, at + (2 * context - 2 - c) * half, at + c * half) if context > 1 else at
            # Row position * B + b predicts the token after it.
            assert whole[rows.audited_A % size, position + 1].tolist() == rows.target_A.tolist()
            audited += zip(rows.target_A.tolist(), rows.weight_A.tolist(), rows.behaviour_A.tolist(), strict=True)
            anchored += len(rows.anchored_U)
    at = shards.audited
    expected = zip(
        shards.input_ids[at].tolist(), shards.loss_weight[at].tolist(), shards.behaviour[at].tolist(), strict=True
    )
    assert sorted(audited) == sorted(expected)
    assert anchored == facts.unaudited_tokens


def test_sequences_are_laid_out_as_the_table_has_them() -> None:
    rows = kit.shard_rows(5)
    shards = read(rows)
    for n, row in enumerate(rows):
        at = slice(int(shards.offsets[n]), int(shards.offsets[n + 1]))
        for field, column in (("input_ids", "input_ids"), ("audited", "audited"), ("response", "response_mask")):
            assert getattr(shards, field)[at].tolist() == row[column]
        for field, column in (("loss_weight", "loss_weight"), ("behaviour", "behaviour_logprobs")):
            assert getattr(shards, field)[at].tolist() == np.array(row[column], np.float32).tolist()


def test_an_epoch_takes_every_sequence_once_in_an_order_set_by_the_seed() -> None:
    plan = plan_steps(10, global_batch=4, epochs=2, seed=3, steps=None)
    assert [len(step) for step in plan] == [4, 3, 3, 4, 3, 3]
    first, second = np.concatenate(plan[:3]), np.concatenate(plan[3:])
    assert sorted(first) == sorted(second) == list(range(10))
    assert first.tolist() != second.tolist()
    again = plan_steps(10, global_batch=4, epochs=2, seed=3, steps=2)
    assert [step.tolist() for step in again] == [step.tolist() for step in plan[:2]]
    assert plan_steps(10, global_batch=4, epochs=1, seed=4, steps=None)[0].tolist() != plan[0].tolist()


def test_no_step_of_an_epoch_is_left_with_a_rest_of_few_sequences() -> None:
    assert [len(step) for step in plan_steps(65, global_batch=64, epochs=1, seed=0, steps=None)] == [33, 32]
    assert [len(step) for step in plan_steps(128, global_batch=64, epochs=1, seed=0, steps=None)] == [64, 64]
    assert [len(step) for step in plan_steps(3, global_batch=64, epochs=1, seed=0, steps=None)] == [3]


def test_padded_lengths_are_multiples_of_the_bucket() -> None:
    shards = read(kit.shard_rows(4))
    for context, multiple in ((1, 1), (2, 3)):
        share = Share(context_ranks=context, multiple=multiple, bucket=8)
        batches = micro_batches(shards, np.arange(4), facts_of(shards), share, micro_batch=2)
        for batch in batches:
            length = batch.ids_BS.shape[1] * context
            assert length % 8 == 0
            assert length % (2 * context * multiple if context > 1 else 1) == 0


def test_sequences_of_like_length_share_a_micro_batch() -> None:
    lengths = np.random.default_rng(0).integers(10, 1000, 64)
    order = np.random.default_rng(1).permutation(64)
    padded = lengths[order].reshape(-1, 4).max(1).sum() * 4
    assert 1 - lengths.sum() / padded > 0.3, "in the order of the data"
    assert padding_share(lengths, order, Share(ranks=2), micro_batch=4) < 0.06
    assert padding_share(lengths, order, Share(ranks=2), micro_batch=1) == 0
    # The second rank's empty sequence is one position.
    assert padding_share(np.array([5]), np.array([0]), Share(ranks=2), micro_batch=1) == pytest.approx(1 / 6)


def test_centring_makes_the_batch_s_audited_weights_sum_to_zero() -> None:
    shards = read(kit.shard_rows(5))
    facts = facts_of(shards, centre="batch_mean")
    (batch,) = micro_batches(shards, np.arange(5), facts, Share(), micro_batch=5)
    assert facts.mean_weight == pytest.approx(shards.loss_weight[shards.audited].mean(), rel=1e-6)
    assert batch.rows.weight_A.double().mean().item() == pytest.approx(0, abs=1e-7)
    assert facts_of(shards).baseline == 0


def test_the_normaliser_is_the_audited_tokens_or_one() -> None:
    shards = read(kit.shard_rows(3))
    assert facts_of(shards).normaliser == shards.audited.sum()
    assert facts_of(shards, normalise="sum").normaliser == 1
    unaudited = [row | {"audited": [False] * len(row["audited"])} for row in kit.shard_rows(3)]
    facts = facts_of(read(unaudited), centre="batch_mean")
    assert (facts.normaliser, facts.mean_weight, facts.audited_tokens) == (1, 0.0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [1, 2, 97]}, "token id 97, outside the student's vocabulary of 97"),
        ({"input_ids": [1, 2]}, "differ in length"),
        ({"audited": [False, True, False], "response_mask": [False, False, True]}, "token of the prompt"),
        ({"response_mask": [True, True, True]}, "token of the prompt"),
        ({"loss_weight": [0.0, float("nan"), 0.0]}, "not finite"),
        ({name: [] for name in COLUMNS}, "a row has no tokens"),
    ],
)
def test_shards_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    row = {
        "trajectory_id": "t",
        "input_ids": [1, 2, 3],
        "loss_weight": [0.0, 0.5, 0.0],
        "audited": [False, True, False],
        "response_mask": [False, True, True],
        "behaviour_logprobs": [0.0, -1.0, -1.0],
    }
    read([row])
    with pytest.raises(InputError, match=message):
        read([row | change])


def test_shards_without_rows_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        read([])
