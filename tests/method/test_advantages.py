"""Group-normalised rewards beside one group at a time in float64."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.method.advantages import advantages


def naive(rewards, groups):
    out = []
    for reward, group in zip(rewards, groups, strict=True):
        own = [float(r) for r, g in zip(rewards, groups, strict=True) if g == group]
        if len(set(own)) == 1:
            out.append(0.0)
        else:
            out.append((float(reward) - statistics.fmean(own)) / (statistics.stdev(own) + 1e-4))
    return out


@given(st.lists(st.tuples(st.integers(-2, 3), st.sampled_from([0.0, 1.0, 1.0, 0.1, 0.25])), max_size=30))
def test_advantages_equal_the_reference(samples):
    groups, rewards = np.array([g for g, _ in samples], dtype=np.int64), np.array([r for _, r in samples])
    assert advantages(rewards, groups).tolist() == pytest.approx(naive(rewards, groups), abs=1e-9)


def test_equal_rewards_are_no_signal_even_where_their_mean_is_rounded():
    rewards = np.full(7, 0.1, dtype=np.float32)
    assert advantages(rewards, np.zeros(7, dtype=np.int64)).tolist() == [0.0] * 7


def test_right_among_wrong_stands_out_by_the_sample_deviation():
    found = advantages(np.array([1.0, 0.0, 0.0, 0.0]), np.array([5, 5, 5, 5]))
    assert found.tolist() == pytest.approx([0.75 / 0.5001, *[-0.25 / 0.5001] * 3])
