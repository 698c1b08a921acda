"""Which sequences share a micro-batch under a budget of tokens, and which rank has it."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.store.layout import RunDir
from omniopd.train.metrics import MetricsLog
from omniopd.train.share import Share, deal, padding_share
from omniopd.train.trainer import train_round
from support import training as kit

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=9)


def positions(lengths: np.ndarray, batch: list[int | None], share: Share) -> int:
    return len(batch) * share.padded(max(1 if n is None else int(lengths[n]) for n in batch))


@given(LENGTHS, st.integers(1, 100), st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 4]))
def test_every_sequence_is_in_one_micro_batch_and_none_exceeds_the_budget_unless_it_is_alone(
    values: list[int], budget: int, ranks: int, context: int, bucket: int
) -> None:
    lengths, share = np.array(values), Share(ranks=ranks, context_ranks=context, bucket=bucket)
    dealt = deal(lengths, np.arange(len(lengths)), share, micro_batch=1, micro_tokens=budget)
    assert len({len(part) for part in dealt}) == 1, "as many on every rank"
    batches = [batch for part in dealt for batch in part]
    assert sorted(n for batch in batches for n in batch if n is not None) == list(range(len(lengths)))
    assert all(positions(lengths, batch, share) <= budget * context or len(batch) == 1 for batch in batches)


@given(LENGTHS, st.integers(1, 100))
def test_there_are_as_few_micro_batches_as_can_be_with_as_little_padding_as_these_can_have(
    values: list[int], budget: int
) -> None:
    """Against all ways to cut the sequences, in order of length, into pieces."""
    lengths = np.array(values)
    ordered = np.sort(lengths)[::-1]
    ways: dict[int, int] = {}
    for cuts in itertools.product((False, True), repeat=len(ordered) - 1):
        groups = np.split(ordered, 1 + np.flatnonzero(cuts))
        if all(len(group) * group[0] <= budget or len(group) == 1 for group in groups):
            cost = int(sum(len(group) * group[0] for group in groups))
            ways[len(groups)] = min(cost, ways.get(len(groups), cost))
    (mine,) = deal(lengths, np.arange(len(lengths)), Share(), micro_batch=1, micro_tokens=budget)
    assert len(mine) == min(ways)
    assert sum(positions(lengths, batch, Share()) for batch in mine) == ways[min(ways)]


def test_lengths_in_another_order_of_the_same_sequences_give_the_same_micro_batches() -> None:
    lengths = np.random.default_rng(0).permutation(np.arange(10, 74))
    order = np.random.default_rng(1).permutation(64)
    one, two = (deal(lengths, o, Share(ranks=2), micro_batch=1, micro_tokens=200) for o in (order, order[::-1]))
    assert one == two


def test_a_budget_pads_less_than_a_count_with_as_many_micro_batches() -> None:
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(200, 800, 48), rng.integers(8000, 20481, 16)])
    order, share = np.arange(64), Share(ranks=2)
    by_count = deal(lengths, order, share, micro_batch=4)
    budget = next(b for b in range(1000, 10**6, 200) if passes(lengths, b, share) <= len(by_count[0]))
    padding = [
        padding_share(lengths, order, share, micro_batch=4, micro_tokens=tokens) for tokens in (None, budget)
    ]  # fmt: skip
    assert padding[1] < 0.8 * padding[0]
    assert budget < 0.5 * 4 * lengths.max(), "and takes less memory"


def passes(lengths: np.ndarray, budget: int, share: Share) -> int:
    return len(deal(lengths, np.arange(len(lengths)), share, micro_batch=1, micro_tokens=budget)[0])


def test_a_round_by_a_budget_is_the_round_by_single_sequences_and_the_same_bits_after_a_resume(
    tmp_path: Path, students
) -> None:
    from safetensors.torch import load_file

    class Killed(Exception):
        pass

    def die(done: int, *_: object) -> None:
        if done == 3:
            raise Killed

    def train(name: str, killed: bool = False, **section: object) -> dict:
        run, config = RunDir(tmp_path / name), kit.make_config(students("qwen3"), epochs=2, **section)
        kit.write_round(run, 0, config, kit.shard_rows(10))
        if killed:
            with pytest.raises(Killed):
                train_round(run, 0, config, die)
        train_round(run, 0, config)
        weights = load_file(run.round(0).policy / "model.safetensors")
        return {"weights": weights, "loss": [row["loss"] for row in MetricsLog(run, 0).rows()]}

    alone = train("alone", micro_batch=1)
    budget = train("budget", micro_tokens=70)
    resumed = train("resumed", micro_tokens=70, killed=True)
    assert budget["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    for name, tensor in alone["weights"].items():
        assert (budget["weights"][name] - tensor).abs().max() < 2e-5
        assert budget["weights"][name].equal(resumed["weights"][name])
