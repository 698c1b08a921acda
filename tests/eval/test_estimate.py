"""Estimators against enumeration by hand and by brute force, and against scipy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from omniopd.eval.estimate import (
    bootstrap_mean,
    paired_difference,
    pass_at_1,
    pass_at_k,
    repeat_error,
    wilson,
)


def test_pass_at_k_computed_by_hand():
    """n = 4, c = 0, 1, 2, 4, k = 2: of C(4,2) = 6 pairs, 6, 3, 1, 0 miss; so (0 + 3/6 + 5/6 + 1) / 4 = 7/12."""
    right = np.array([0, 1, 2, 4])
    assert pass_at_k(4, right, 2) == pytest.approx(7 / 12)
    assert pass_at_k(4, right, 1) == pytest.approx(7 / 16)
    assert pass_at_k(4, right, 4) == pytest.approx(3 / 4)


def test_pass_at_k_of_chens_example_size_is_finite_and_known():
    """n = 200, c = 13, k = 100 overflows as binomials in int64: against exact integers."""
    exact = 1 - math.comb(187, 100) / math.comb(200, 100)
    assert pass_at_k(200, np.array([13]), 100) == pytest.approx(exact, rel=1e-12)


verdicts = st.integers(1, 5).flatmap(
    lambda samples: st.lists(st.lists(st.booleans(), min_size=samples, max_size=samples), min_size=1, max_size=5)
)


@given(verdicts)
def test_pass_at_k_is_the_share_of_all_k_subsets_that_hold_a_right_sample(rows):
    samples = len(rows[0])
    for k in range(1, samples + 1):
        subsets = list(itertools.combinations(range(samples), k))
        brute = np.mean([[any(row[i] for i in subset) for subset in subsets] for row in rows])
        assert pass_at_k(samples, np.array(rows).sum(axis=1), k) == pytest.approx(brute)


def test_pass_at_k_beyond_the_samples_is_refused():
    for k in (0, 5):
        with pytest.raises(ValueError, match="cannot be estimated from 4 samples"):
            pass_at_k(4, np.array([1]), k)


def test_the_interval_is_that_of_scipys_percentile_bootstrap_over_questions():
    rng = np.random.default_rng(3)
    rows = rng.random((60, 8)) < rng.random((60, 1))
    ours = pass_at_1(rows)
    theirs = stats.bootstrap(
        (rows.mean(axis=1),), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(4)
    ).confidence_interval
    assert ours.value == pytest.approx(rows.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.005)
    assert ours.high == pytest.approx(theirs.high, abs=0.005)


def test_more_samples_that_say_the_same_do_not_narrow_the_interval():
    """The unit is the question: 16 copies of a verdict are one question still."""
    rows = np.random.default_rng(0).random((40, 1)) < 0.5
    assert pass_at_1(np.repeat(rows, 16, axis=1)) == pass_at_1(rows)


@pytest.mark.parametrize("right", [True, False])
def test_agreement_of_all_samples_does_not_look_like_certainty(right):
    interval = pass_at_1(np.full((30, 16), right))
    assert interval.value == right
    assert interval.high - interval.low > 0.1


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """300 benchmarks of 100 questions, 4 samples, difficulties drawn from a uniform distribution: mean 1/2."""
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(300):
        rows = rng.random((100, 4)) < rng.random((100, 1))
        interval = bootstrap_mean(rows.mean(axis=1))
        covered += interval.low <= 0.5 <= interval.high
    assert 0.90 <= covered / 300 <= 0.985


def test_the_error_of_sampling_again_is_what_sampling_again_shows():
    rng = np.random.default_rng(5)
    p = rng.random((25, 1))
    repeats = [(rng.random((25, 8)) < p).mean() for _ in range(4000)]
    estimated = np.mean([repeat_error(rng.random((25, 8)) < p) for _ in range(200)])
    assert estimated == pytest.approx(np.std(repeats), rel=0.05)
    assert math.isnan(repeat_error(np.ones((3, 1), dtype=bool)))


differences = st.lists(st.integers(-4, 4), min_size=1, max_size=9)


@given(differences)
def test_p_is_the_share_of_all_sign_patterns_that_are_as_far_from_zero(values):
    a, b = np.array(values) / 4, np.zeros(len(values))
    result = paired_difference(a, b)
    sums = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(values))]  # fmt: skip
    assert result.exact
    assert result.p == pytest.approx(np.mean([total >= abs(sum(values)) for total in sums]))
    assert result.gain.value == pytest.approx(np.mean(a))


def test_with_one_sample_a_question_it_is_mcnemars_exact_test():
    a = np.array([1] * 9 + [0] * 3 + [1] * 20, dtype=float)
    b = np.array([0] * 9 + [1] * 3 + [1] * 20, dtype=float)
    assert paired_difference(a, b).p == pytest.approx(stats.binomtest(9, 12).pvalue)


def test_drawn_signs_agree_with_all_signs():
    values = np.random.default_rng(1).normal(0.3, 1, size=18)
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    exact = np.mean(np.abs(sums) >= abs(values.sum()) - 1e-12)
    drawn = paired_difference(values, np.zeros(18))
    assert not drawn.exact
    assert drawn.p == pytest.approx(exact, abs=0.006)


def test_equal_models_have_no_gain_and_p_is_one():
    a = np.array([0.25, 1.0, 0.5])
    result = paired_difference(a, a)
    assert (result.gain.value, result.gain.low, result.gain.high, result.p) == (0.0, 0.0, 0.0, 1.0)


def test_pairing_sees_a_gain_that_two_intervals_hide():
    """Questions differ much, and A is a little better on each: the intervals overlap, the difference is clear."""
    b = np.linspace(0, 0.9, 50)
    result = paired_difference(b + 0.05, b)
    assert bootstrap_mean(b).high > bootstrap_mean(b + 0.05).low
    assert result.gain.low == pytest.approx(0.05)
    assert result.p < 1e-4


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_wilsons_interval_holds_the_share_and_lies_in_the_unit_interval(verdicts):
    interval = wilson(sum(verdicts), len(verdicts))
    assert interval.value == sum(verdicts) / len(verdicts)
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1


@pytest.mark.parametrize(("right", "wrong"), [(2, 8), (0, 5), (7, 0), (300, 700)])
def test_wilsons_ends_are_1_96_standard_errors_away_each_by_its_own_variance(right, wrong):
    """The definition: (share - p)^2 = z^2 p (1 - p) / n at both ends."""
    interval = wilson(right, right + wrong)
    for p in (interval.low, interval.high):
        assert (interval.value - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / (right + wrong), abs=1e-6)


def test_wilson_against_a_published_value():
    """Newcombe (1998), table I: 15 of 148."""
    interval = wilson(15, 148)
    assert (interval.low, interval.high) == pytest.approx((0.0624, 0.1605), abs=5e-4)
