"""Adaptive rollouts: the rule, and the stage that follows it."""

import collections

import numpy as np
import pytest
import scipy.stats
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from omniopd.method.stopping import FIRST, STEP, Adaptive, Fixed, half_width, stopping_rule
from omniopd.stages.audit.stage import audit
from omniopd.stages.score.stage import score
from omniopd.store.errors import BudgetReached, ConfigChangedError, TeacherError
from omniopd.store.ledger_read import read_totals

unit = st.floats(0, 1)
answers = st.lists(st.one_of(st.none(), unit), min_size=40, max_size=40)


def rule(most=20, precision=0.07, alpha=1.0):
    return Adaptive(most, precision, alpha, lambda chunks, texts: [1.0] * len(texts))


def ask_until_enough(rule, truth, prior):
    """Rollouts that an undisturbed audit would ask for."""
    phi = {}
    while len(phi) < (wanted := rule.target_count(phi, prior)):
        assert wanted <= rule.most
        assert wanted in rule.checkpoints
        phi |= {i: truth[i] for i in range(wanted)}
    return phi


@given(answers, unit, st.integers(1, 40), st.floats(0.001, 0.5), st.floats(0, 4))
def test_never_more_than_the_most_and_never_fewer_than_a_spread_can_be_told_from(truth, prior, most, precision, alpha):
    asked = ask_until_enough(rule(most, precision, alpha), truth, prior)
    assert min(FIRST, most) <= len(asked) <= most


@given(answers, answers, unit, st.integers(1, 40), st.floats(0.01, 0.3))
def test_the_decision_is_made_by_the_rollouts_seen_and_no_others(truth, other, prior, most, precision):
    """Whatever the later rollouts would have been, the same number is asked for."""
    r = rule(most, precision)
    asked = len(ask_until_enough(r, truth, prior))
    assert len(ask_until_enough(r, truth[:asked] + other[asked:], prior)) == asked


@given(answers, unit, st.integers(1, 40), st.floats(0.01, 0.3), st.sets(st.integers(0, 39)))
def test_any_part_that_is_left_by_a_kill_leads_to_the_same_rollouts(truth, prior, most, precision, survived):
    r = rule(most, precision)
    whole = ask_until_enough(r, truth, prior)
    phi = {i: truth[i] for i in survived if i in whole}
    while missing := [i for i in range(r.target_count(phi, prior)) if i not in phi]:
        phi |= {i: truth[i] for i in missing}
    assert phi == whole


@given(st.lists(unit, min_size=2, max_size=20), unit, st.floats(0, 4))
def test_the_half_width_is_the_formula(phi, prior, alpha):
    n, x = len(phi), np.array(phi)
    weight = (x.sum() + alpha * prior) / (n + alpha)
    variance = (n * x.var() + weight * (1 - weight)) / n
    noise = scipy.stats.t.ppf(0.975, n) * np.sqrt(n * variance) / (n + alpha)
    pull = alpha * abs(prior - x.mean()) / (n + alpha)
    assert half_width(phi, prior, alpha) == pytest.approx(noise + pull, abs=1e-9)


def test_a_teacher_of_one_mind_is_asked_less_often_than_one_of_two():
    r = rule()
    assert len(ask_until_enough(r, [1.0] * 20, 0.95)) == FIRST
    assert len(ask_until_enough(r, [1.0, 0.0] * 10, 0.5)) == 20
    assert len(ask_until_enough(r, [None] * 20, 0.5)) == 20, "without an answer nothing is known"
    assert len(ask_until_enough(r, [1.0] * 20, 0.1)) > FIRST, "the prior still pulls"


def test_the_interval_holds_what_it_says_and_stopping_early_moves_the_mean_little():
    """95 % is for a single look; with several checkpoints, and where both modes may be missed, it is a little less."""
    rng = np.random.default_rng(0)
    r = rule(most=20, precision=0.15, alpha=0.0)
    errors, covered = [], 0
    for _ in range(2000):
        mu = rng.beta(4, 2)
        k = rng.uniform(2, 30)
        phi = ask_until_enough(r, rng.beta(mu * k, (1 - mu) * k, 20).tolist(), 0.5)
        values = list(phi.values())
        errors.append(np.mean(values) - mu)
        covered += abs(errors[-1]) <= half_width(values, 0.5, 0.0)
    assert covered / 2000 > 0.93
    assert abs(np.mean(errors)) < 0.005


# -- the stage


MOST = 10


@pytest.fixture
def run(make_run, teacher, generated):
    settings = {"base_url": teacher.base_url, "max_concurrency": 4, "rollouts": "adaptive", "max_rollouts": MOST,
                "precision": 0.2}  # fmt: skip
    return generated(make_run(questions=24, teacher=settings))


def undecided(teacher):
    """A teacher that repeats itself after some prefixes, and not after others; the text depends on the rollout."""
    counts = collections.Counter()

    def behave(body, number):
        answer = teacher.answer(body)
        first = counts[body["prompt"]]
        counts[body["prompt"]] += len(answer["choices"])
        for i, choice in enumerate(answer["choices"], first):
            choice["text"] = "123456" if len(body["prompt"]) % 2 else f"{i}{i}{i}"
        return web.json_response(answer)

    return behave


def per_chunk(run):
    rows = run.round(0).rollouts.read(["chunk_id", "rollout_index"]).to_pylist()
    found = collections.defaultdict(list)
    for row in rows:
        found[row["chunk_id"]].append(row["rollout_index"])
    return {chunk: sorted(indices) for chunk, indices in found.items()}


def test_each_chunk_has_as_many_rollouts_as_its_own_answers_call_for(run, teacher):
    teacher.behave = undecided(teacher)
    config = run.config(("teacher.price={input=1.0, output=5.0}",))
    audit(run, 0, config)
    rule = stopping_rule(config)
    chunks = {c["chunk_id"]: c for c in run.round(0).chunks.read().to_pylist()}
    rows = sorted(run.round(0).rollouts.read().to_pylist(), key=lambda r: r["rollout_index"])
    found = per_chunk(run)
    assert set(found) == set(chunks)
    for chunk_id, indices in found.items():
        chunk = chunks[chunk_id]
        texts = [row["text"] for row in rows if row["chunk_id"] == chunk_id]
        phi = dict(zip(indices, rule.phi([chunk["chunk_text"]] * len(texts), texts), strict=True))
        assert indices == list(range(len(ask_until_enough(rule, phi, chunk["prior"]))))
    sizes = {len(indices) for indices in found.values()}
    assert len(sizes) > 1, "some chunks were stopped early"
    assert {body["n"] for body in teacher.bodies} == {FIRST, STEP}
    totals = read_totals(run.ledger)
    assert totals.reserved_tokens == 0
    assert totals.requests == teacher.requests
    assert sum(row["completion_tokens"] for row in rows) == totals.completion_tokens
    before = teacher.requests
    audit(run, 0, config)
    assert teacher.requests == before, "what is enough is not asked for again"
    score(run, 0, config)


def test_an_audit_that_is_interrupted_again_and_again_ends_with_the_same_rollouts(run, make_run, teacher, generated):
    teacher.behave = undecided(teacher)
    audit(run, 0, run.config())
    whole = per_chunk(run)
    other = make_run(name="other", questions=24, teacher=run.config().teacher.model_dump(
        include={"base_url", "max_concurrency", "rollouts", "max_rollouts", "precision"}))  # fmt: skip
    generated(other)
    teacher.behave = undecided(teacher)
    for stop in (7, 19, 40):
        until = teacher.requests + stop
        inner = teacher.behave

        def dying(body, number, until=until, inner=inner):
            return "hang up" if number >= until else inner(body, number)

        teacher.behave = dying
        with pytest.raises(TeacherError):
            audit(other, 0, other.config(("teacher.max_attempts=1", "teacher.max_concurrency=1")))
        teacher.behave = inner
    audit(other, 0, other.config())
    assert per_chunk(other) == whole
    assert read_totals(other.ledger).reserved_tokens == 0


def test_the_budget_holds_and_what_it_leaves_out_is_asked_for_once_it_is_raised(run, teacher):
    teacher.behave = undecided(teacher)
    with pytest.raises(BudgetReached):
        audit(run, 0, run.config(("teacher.budget_tokens=6000",)))
    assert 0 < read_totals(run.ledger).charged_tokens <= 6000
    audit(run, 0, run.config())
    assert set(per_chunk(run)) == set(run.round(0).chunks.read(["chunk_id"])["chunk_id"].to_pylist())


def test_a_poisoned_prompt_costs_the_others_nothing(run, teacher, monkeypatch):
    monkeypatch.setattr("omniopd.stages.audit.sender.pause_s", lambda attempt, retry_after: 0.0)
    good = undecided(teacher)
    poisoned = []

    def behave(body, number):
        if number == 3:
            poisoned.append(body["prompt"])
        return web.json_response({}, status=500) if body["prompt"] in poisoned else good(body, number)

    teacher.behave = behave
    audit(run, 0, run.config(("teacher.max_attempts=2",)))
    rows = run.round(0).rollouts.read(["chunk_id", "status"]).to_pylist()
    answered = collections.Counter(row["chunk_id"] for row in rows if row["status"] != "failed")
    chunks = run.round(0).chunks.read(["chunk_id"])["chunk_id"].to_pylist()
    # The poisoned one is recorded as failed, or left open where no later request was answered.
    assert 1 <= len(chunks) - len(answered) <= 2
    assert min(answered.values()) >= FIRST


def test_what_decides_may_not_change_under_the_rollouts(run, teacher):
    audit(run, 0, run.config())
    for change in ("teacher.precision=0.3", "teacher.max_rollouts=12", "score.phi=rouge1", "score.alpha=2.0"):
        with pytest.raises(ConfigChangedError):
            audit(run, 0, run.config((change,)))


def test_a_fixed_number_is_fixed():
    assert Fixed(7).target_count({}, 0.5) == 7
    assert Fixed(7).checkpoints == (7,)
