"""The longest repeated token sequence, beside a search that tries every length."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.stages.generate.repetition import longest_repeat, repetition


def by_search(ids):
    for n in range(len(ids) - 1, 0, -1):
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        if len(set(grams)) < len(grams):
            return n
    return 0


@given(st.lists(st.integers(0, 3), max_size=40))
def test_it_equals_the_search(ids):
    assert longest_repeat(np.array(ids, dtype=np.int32)) == by_search(ids)


@pytest.mark.parametrize(
    ("ids", "share"),
    [([], 0.0), ([7], 0.0), ([1, 2, 3], 0.0), ([5] * 10, 0.9), ([1, 2, 3, 4, 9, 1, 2, 3, 4, 8], 0.4)],
)
def test_a_loop_is_nearly_one_and_no_repetition_is_zero(ids, share):
    assert repetition(np.array(ids, dtype=np.int32)) == pytest.approx(share)


def test_token_ids_of_a_large_vocabulary_are_told_apart():
    ids = np.random.default_rng(0).integers(0, 152_000, 20_000).astype(np.int32)
    ids[12_000:12_300] = ids[500:800]
    assert longest_repeat(ids) == 300
