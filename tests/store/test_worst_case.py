"""The bound on what a request costs: never below what was billed, and the dialect's own until bills taught better."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.store.usage import Usage
from omniopd.store.worst_case import ENOUGH, MARGIN, WorstCase

tokens = st.integers(1, 5000)
estimates = st.builds(lambda prompt, new: Usage(prompt, 0, new), tokens, st.integers(1, 400))
bills = st.builds(lambda prompt, new: Usage(prompt, 0, new), tokens, st.integers(0, 1000))
histories = st.lists(st.tuples(estimates, bills), max_size=60)


def taught(history):
    worst_case = WorstCase()
    for estimate, bill in history:
        worst_case.observe(estimate, bill)
    return worst_case


@given(estimates)
def test_without_bills_the_bound_is_the_dialects_own(estimate):
    assert WorstCase().bound(estimate) == estimate


@given(histories, tokens)
def test_a_prompt_that_may_be_written_to_a_cache_as_a_whole_may_be_so_for_its_bound_too(history, prompt):
    bound = taught(history).bound(Usage(prompt, 0, 9, cache_write_tokens=prompt, cache_write_1h_tokens=prompt))
    assert bound.cache_write_tokens == bound.cache_write_1h_tokens == bound.prompt_tokens


@given(histories)
def test_no_request_that_was_billed_would_overrun_its_bound_today(history):
    worst_case = taught(history)
    for estimate, bill in history:
        bound = worst_case.bound(estimate)
        assert bound.prompt_tokens >= bill.prompt_tokens
        assert bound.completion_tokens >= bill.completion_tokens


@given(histories, estimates)
def test_the_bound_is_never_above_the_dialects_own_while_bills_keep_to_it(history, estimate):
    honest = [(e, Usage(min(b.prompt_tokens, e.prompt_tokens), 0, min(b.completion_tokens, e.completion_tokens)))
              for e, b in history]  # fmt: skip
    bound = taught(honest).bound(estimate)
    assert bound.prompt_tokens <= estimate.prompt_tokens
    assert bound.completion_tokens == estimate.completion_tokens


@given(histories, st.tuples(estimates, bills), estimates)
def test_once_learned_a_bound_only_rises(history, one_more, estimate):
    worst_case = taught(history + [(estimate, Usage(1, 0, 0))] * ENOUGH)
    before = worst_case.bound(estimate)
    worst_case.observe(*one_more)
    after = worst_case.bound(estimate)
    assert after.prompt_tokens >= before.prompt_tokens
    assert after.completion_tokens >= before.completion_tokens


@given(histories, tokens, tokens)
def test_a_longer_prompt_is_bounded_no_lower_than_a_shorter_one(history, one, other):
    shorter, longer = sorted((one, other))
    worst_case = taught(history)
    assert worst_case.bound(Usage(shorter)).prompt_tokens <= worst_case.bound(Usage(longer)).prompt_tokens


@given(st.integers(1, 1 << 30))
def test_sizes_are_quarters_of_an_octave(tokens):
    from omniopd.store.worst_case import _size, _smallest

    smallest, next_smallest = _smallest(_size(tokens)), _smallest(_size(tokens) + 1)
    assert smallest <= tokens < next_smallest or tokens < 4
    assert _size(smallest) == _size(tokens)
    assert next_smallest <= max(smallest + 1, smallest * 1.25 + 1)


@given(histories, estimates)
def test_many_bills_at_once_teach_what_they_teach_one_by_one(history, estimate):
    together = WorstCase()
    groups = {}
    for key, bill in history:
        groups.setdefault(key, []).append(bill)
    for key, group in groups.items():
        most = Usage(max(b.prompt_tokens for b in group), 0, max(b.completion_tokens for b in group))
        together.observe(key, most, len(group))
    assert together.bound(estimate) == taught(history).bound(estimate)


def test_prompts_of_one_size_are_bounded_by_the_dearest_of_them_with_a_margin():
    worst_case = taught([(Usage(1000, 0, 48), Usage(200 + i, 0, 48)) for i in range(ENOUGH)])
    highest = 200 + ENOUGH - 1
    assert worst_case.bound(Usage(1000, 0, 48)).prompt_tokens == pytest.approx(highest * MARGIN, abs=1)
    longer = worst_case.bound(Usage(4000, 0, 48)).prompt_tokens
    assert longer == pytest.approx(896 * highest / 1000 * MARGIN + 4000 - 896, abs=1), "the rest at a token a byte"


def test_a_bill_above_the_estimate_raises_all_later_bounds_at_once_by_the_same_factor():
    worst_case = taught([(Usage(1000, 0, 40), Usage(1200, 0, 400))])
    assert worst_case.bound(Usage(5000, 0, 8)) == Usage(6000, 0, 80)


def test_what_is_written_to_the_cache_is_bounded_with_the_prompt():
    history = [(Usage(1000, 0, 10, 1000), Usage(100, 0, 10, 100))] * ENOUGH
    assert taught(history).bound(Usage(1000, 0, 10, 1000)) == Usage(150, 0, 10, 150)
