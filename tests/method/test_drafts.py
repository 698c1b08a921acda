"""Drafts in the student's tokens, the cut at the first token that it rejects, and how far drafts agree: pure."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from omniopd.method.drafts import accepted_tokens, consensus, draft_ids, paying_length, reach
from omniopd.method.similarity.metrics import METRICS
from omniopd.method.similarity.units import CharUnits, DigitUnits
from omniopd.store.sections import ScoreConfig
from support import tokenizers as kit

KINDS = {"byte_level": kit.byte_level(), "metaspace": kit.metaspace(), "byte_fallback": kit.byte_fallback()}
SEEN = ["so it is 12", "so it is ", "wor", "", "a\n", "né", "</s>", "<|im_end|>\n", "x <s>"]
"""What prefixes end in: a word, a space, the inside of a word, a line, a letter of two bytes, special tokens."""


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


SAID = ["ds go on", " 7 = 5", "\nnext", "</s> is text", "5", "  two", "é"]
CASES = [
    case
    for case in itertools.product(KINDS, SEEN, SAID)
    if case[0] != "metaspace" or "é" not in case[1] + case[2]  # to it, such a letter is unknown
]


@pytest.mark.parametrize(("kind", "before", "text"), CASES)
def test_a_draft_decodes_behind_its_prefix_to_exactly_what_the_teacher_wrote(kind, before, text):
    tokenizer = KINDS[kind]
    prefix = tokenizer("Q: 1+1?\n" + before, add_special_tokens=False)["input_ids"]
    ids = draft_ids(tokenizer, prefix, text, end_id=kit.TURN, ended=True)
    assert ids is not None
    assert ids[-1] == kit.TURN
    assert decode(tokenizer, prefix + ids[:-1]) == decode(tokenizer, prefix) + text
    assert not set(ids[:-1]) & {kit.BOS, kit.EOS, kit.TURN}, "what looks like a special token is text"
    assert draft_ids(tokenizer, prefix, text, end_id=kit.TURN, ended=False) == ids[:-2]
    assert draft_ids(tokenizer, prefix, text, end_id=None, ended=True) == ids[:-1]


def test_a_text_without_tokens_of_the_students_has_no_draft():
    prefix = KINDS["metaspace"]("hm", add_special_tokens=False)["input_ids"]
    assert draft_ids(KINDS["metaspace"], prefix, "naïve", end_id=kit.TURN, ended=True) is None


def test_half_a_character_before_the_fork_stays_half():
    tokenizer = KINDS["byte_level"]
    prefix = tokenizer("né", add_special_tokens=False)["input_ids"][:-1]
    ids = draft_ids(tokenizer, prefix, "x", end_id=None, ended=True)
    assert decode(tokenizer, ids) == "x"


@st.composite
def judged(draw):
    rows = draw(st.integers(0, 6))
    logits = draw(st.lists(st.lists(st.integers(-24, 24), min_size=5, max_size=5), min_size=rows, max_size=rows))
    return torch.tensor(logits).reshape(-1, 5) / 4, draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows))


@given(judged(), st.sampled_from(["min_p", "probability", "typical", "rank"]), st.floats(0.01, 0.9))
def test_accepted_are_the_tokens_before_the_first_that_fails_its_criterion(case, accept, share):
    logits_TV, ids = case
    threshold = 1 + round(share * 4) if accept == "rank" else share
    expected = 0
    for logits, id_ in zip(logits_TV.double(), ids, strict=True):
        p = torch.softmax(logits, -1)
        entropy = -sum(float(x) * math.log(float(x)) for x in p if x > 0)
        bound = {
            "min_p": threshold * float(p.max()),
            "probability": threshold,
            "typical": min(threshold, math.sqrt(threshold) * math.exp(-entropy)),
        }.get(accept)
        holds = int((logits > logits[id_]).sum()) < threshold if bound is None else float(p[id_]) >= bound * (1 - 1e-9)
        if not holds:
            break
        expected += 1
    log_p_TV = torch.log_softmax(logits_TV.double(), -1)
    own_T = log_p_TV[torch.arange(len(ids)), torch.tensor(ids, dtype=torch.long)]
    got = accepted_tokens(
        ScoreConfig(accept=accept, accept_threshold=threshold * (1 - (accept != "rank") * 1e-9)), own_T.numpy(),
        -(log_p_TV.exp() * log_p_TV).sum(-1).numpy(), log_p_TV.amax(-1).numpy() if ids else np.zeros(0),
        (log_p_TV > own_T[:, None]).sum(-1).numpy(),
    )  # fmt: skip
    assert got == expected


def test_what_is_no_number_is_rejected():
    nan_T = np.array([np.nan], dtype=np.float32)
    for accept in ("min_p", "probability", "typical"):
        assert accepted_tokens(ScoreConfig(accept=accept), nan_T, nan_T, nan_T, np.zeros(1, dtype=np.int32)) == 0


def test_thresholds_fit_their_criterion():
    assert ScoreConfig(accept="min_p").threshold == ScoreConfig(accept="typical").threshold == 0.02
    assert ScoreConfig(accept="rank").threshold == 50
    assert ScoreConfig(accept="rank", accept_threshold=3).threshold == 3


def test_reach_is_a_geometric_mean():
    assert reach(np.log([0.5, 0.125])) == pytest.approx(0.25)
    assert reach(np.zeros(0)) is None


drafts_of_forks = st.lists(
    st.tuples(st.integers(0, 2), st.text("ab1 é", max_size=6), st.booleans()), min_size=1, max_size=8
)


@given(drafts_of_forks, st.sampled_from([CharUnits(), DigitUnits()]))
def test_consensus_is_the_mean_similarity_to_the_other_drafts_at_the_shorter_length(drafts, encoder):
    def units(text, ended):
        kept = text if isinstance(encoder, CharUnits) else "".join(c for c in text if c.isdigit())
        return [*kept, *(["END"] if ended else [])]

    fork, texts, ended = zip(*drafts, strict=True)
    got_D = consensus(np.array(fork), texts, np.array(ended), encoder, METRICS["edit"])
    for i, mine in enumerate(drafts):
        values = []
        for j, other in enumerate(drafts):
            a, b = units(*mine[1:]), units(*other[1:])
            n = min(len(a), len(b))
            if i != j and mine[0] == other[0] and n:
                values.append(Levenshtein.normalized_similarity(a[:n], b[:n]))
        assert got_D[i] == pytest.approx(np.mean(values) if values else 1.0)


def test_a_metric_that_reads_texts_gets_them_cut_to_the_shorter_one():
    seen = []

    def metric(pairs):
        seen.extend((pairs.chunk_text(i), pairs.rollout_text(i)) for i in range(len(pairs)))
        return np.ones(len(pairs))

    consensus(np.zeros(2, dtype=int), ["abcdef", "abé"], np.array([True, False]), CharUnits(), metric)
    assert sorted(seen) == [("abc", "abé"), ("abé", "abc")]


def test_a_draft_that_is_alone_agrees_with_itself():
    got_D = consensus(np.arange(3), ["a", "", "b"], np.array([True, False, False]), CharUnits(), METRICS["edit"])
    assert got_D.tolist() == [1, 1, 1]


@given(st.lists(st.tuples(st.integers(1, 60), st.floats(0, 1)), min_size=1, max_size=20), st.integers(0, 80))
def test_no_length_pays_much_better_than_the_one_that_is_chosen_and_no_longer_one_nearly_as_well(drafts, prompt):
    drafted_D = np.array([length for length, _ in drafts], dtype=float)
    followed_D = np.array([length * share for length, share in drafts])
    longest = max(drafted_D)

    def bought(length):
        return np.minimum(followed_D, length).sum() / (prompt * len(drafts) + np.minimum(drafted_D, length).sum())

    chosen = paying_length(followed_D, drafted_D, prompt)
    lengths = range(min(8, int(longest)), int(longest) + 1)
    best = max(bought(length) for length in lengths)
    assert chosen == 2 * longest or min(8, longest) <= chosen < longest
    assert bought(min(chosen, longest)) >= 0.9 * best - 1e-12
    assert all(bought(length) < 0.9 * best + 1e-12 for length in lengths if length > chosen)


def test_a_draft_grows_where_all_of_it_is_followed_and_shrinks_where_its_end_is_foreign():
    whole_D = np.full(10, 40)
    assert paying_length(whole_D * 1.0, whole_D, 30) == 80
    assert paying_length(np.full(10, 12.0), whole_D, 30) == 16  # 12 / (30 + 16) is nine tenths of 12 / (30 + 12)
    assert paying_length(np.full(10, 2.0), whole_D, 30) == 12


def test_a_draft_is_not_cut_for_a_few_per_cent():
    followed_D, drafted_D = np.repeat([10.0, 40.0], 10), np.full(20, 40.0)
    assert paying_length(followed_D, drafted_D, 8) == 80  # 10 tokens would bring 0.56 for each paid, 40 bring 0.52
    assert paying_length(followed_D, drafted_D, 3) == 15  # 0.77 and 0.58
