"""The paper's theorems as properties of the code: Eq. 3-5 as score.sql computes them, φ as similarity.py does."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omniopd.method.similarity.metrics import METRICS, similarities
from omniopd.method.similarity.units import WordUnits
from omniopd.stages.score.stage import score
from omniopd.store.config import Config
from omniopd.store.layout import RunDir
from omniopd.store.sections import ScoreConfig

unit = st.floats(0, 1)
positive = st.floats(1e-6, 1)
alphas = st.floats(1e-3, 100)


def pi_freq(phi_N):
    return phi_N.mean(axis=-1)


def pi_teacher(phi_N, prior, alpha):
    """Eq. 5."""
    return (phi_N.sum(axis=-1) + alpha * prior) / (phi_N.shape[-1] + alpha)


def scored(tmp_path, texts, prior, alpha):
    """Weights of one chunk "a b c d" for several sets of rollouts, by the stage itself."""
    run = RunDir(tmp_path)
    round_ = run.round(0)
    trajectory = {"round": 0, "prompt_ids": [1], "response_ids": [2, 3], "logprobs": [-1.0] * 2, "entropies": [1.0] * 2}
    chunk = {"round": 0, "start": 0, "end": 2, "prior": prior, "chunk_text": "a b c d"}
    rows = {
        round_.trajectories: [trajectory | {"trajectory_id": f"t{i}"} for i in range(len(texts))],
        round_.chunks: [chunk | {"trajectory_id": f"t{i}", "chunk_id": f"c{i}"} for i in range(len(texts))],
        round_.rollouts: [
            {"chunk_id": f"c{i}", "rollout_index": j, "status": "ok", "text": text}
            for i, row in enumerate(texts)
            for j, text in enumerate(row)
        ],
    }
    for table, content in rows.items():
        table.begin({})
        table.append(content)
        table.finish()
    score(run, 0, Config(score=ScoreConfig(alpha=alpha)))
    return sorted(round_.scores.read().to_pylist(), key=lambda row: row["chunk_id"])


# -- 4.1


@given(st.lists(unit, min_size=1, max_size=30), positive, alphas, st.lists(st.floats(-50, 50), min_size=4, max_size=40))
def test_4_1a_the_chunks_gradient_is_bounded_by_its_score_functions(phi, prior, alpha, gradients):
    gradient_TD = np.array(gradients[: len(gradients) // 4 * 4]).reshape(-1, 4)
    weight = pi_teacher(np.array(phi), prior, alpha)
    assert 0 <= weight <= 1 + 1e-12
    bound = np.linalg.norm(gradient_TD, axis=1).sum()
    assert np.linalg.norm(weight * gradient_TD.sum(axis=0)) <= bound * (1 + 1e-9)


@given(st.floats(1e-300, 1e-3))
def test_4_1a_the_reverse_kl_gradient_has_no_such_bound(teacher):
    """d KL(p || q) / d logit = p (log(p / q) - KL): with two tokens of p = 1/2 it is half the log-ratio over two."""
    gradient = 0.5 * (math.log(0.5 / teacher) - 0.5 * (math.log(0.5 / teacher) + math.log(0.5 / (1 - teacher))))
    assert gradient > 0.2 * abs(math.log(teacher)) - 1


@given(st.integers(0, 40), positive, alphas)
def test_4_1b_the_weight_is_never_zero(n, prior, alpha):
    weight = pi_teacher(np.zeros(n), prior, alpha)
    assert weight >= alpha * prior / (n + alpha) * (1 - 1e-12) > 0


def test_4_1b_holds_for_the_stage_where_no_rollout_matches(tmp_path):
    (row,) = scored(tmp_path, [["x y", "z"]], prior=0.3, alpha=1.0)
    assert (row["pi_freq"], row["pi_teacher"]) == (0.0, pytest.approx(0.1))


@pytest.mark.parametrize(("n", "alpha"), [(1, 1.0), (5, 0.3), (10, 1.0), (20, 4.0)])
def test_4_1c_bias_variance_and_error_are_those_of_eq_13(n, alpha):
    rng = np.random.default_rng(n)
    prior, draws = 0.35, 200_000
    phi_RN = rng.beta(0.8, 0.5, (draws, n))
    mu = 0.8 / 1.3
    var = 0.8 * 0.5 / (1.3**2 * 2.3)
    got = pi_teacher(phi_RN, prior, alpha)
    bias, variance = alpha * (prior - mu) / (n + alpha), n * var / (n + alpha) ** 2
    assert got.mean() - mu == pytest.approx(bias, abs=5 * math.sqrt(variance / draws))
    assert got.var() == pytest.approx(variance, rel=0.03)
    assert ((got - mu) ** 2).mean() == pytest.approx(variance + bias**2, rel=0.03)
    assert got.var() / pi_freq(phi_RN).var() == pytest.approx((n / (n + alpha)) ** 2, rel=1e-9)


@given(st.lists(unit, min_size=2, max_size=60))
def test_4_1c_the_variance_of_phi_is_at_most_a_quarter(phi):
    assert np.var(phi) <= 0.25 + 1e-12


# -- 4.2


@pytest.mark.parametrize(("n", "alpha"), [(5, 1.0), (10, 1.0), (40, 2.0)])
@pytest.mark.parametrize("distribution", ["coin", "beta"])
def test_4_2_deviations_from_the_shrunken_target_are_sub_gaussian(n, alpha, distribution):
    rng = np.random.default_rng(0)
    prior, mu = 0.1, 0.5
    phi_RN = rng.integers(0, 2, (50_000, n)) * 1.0 if distribution == "coin" else rng.beta(2, 2, (50_000, n))
    target = (n * mu + alpha * prior) / (n + alpha)
    deviation_R = np.abs(pi_teacher(phi_RN, prior, alpha) - target)
    for epsilon in (0.05, 0.1, 0.2, 0.3):
        bound = 2 * math.exp(-2 * (n + alpha) ** 2 * epsilon**2 / n)
        assert (deviation_R >= epsilon).mean() <= bound + 3 * math.sqrt(bound / 50_000)
    assert deviation_R.var() <= n / (4 * (n + alpha) ** 2)


# -- 4.3

logits = st.lists(st.floats(-20, 20), min_size=6, max_size=6)


@given(logits, logits)
def test_4_3_total_variation_is_bounded_by_the_anchors_kl(reference, student):
    p, q = (np.exp(z - np.logaddexp.reduce(z)) for z in (np.array(reference), np.array(student)))
    kl = float((p * (np.log(p) - np.log(q))).sum())
    assert np.abs(p - q).sum() / 2 <= math.sqrt(max(kl, 0) / 2) + 1e-7


@given(logits, st.lists(unit, min_size=6, max_size=6), st.sampled_from([0.01, 0.1, 1.0, 10.0]))
def test_4_3_the_drift_at_the_minimum_is_paid_for_by_the_chunk_loss(reference, weights, beta):
    """One softmax shared by an audited and an un-audited token, minimised by gradient descent from the reference."""
    log_ref = np.array(reference) / 8
    log_ref -= np.logaddexp.reduce(log_ref)
    w = np.array(weights)

    def losses(z):
        log_q = z - np.logaddexp.reduce(z)
        return -(w * log_q).sum(), (np.exp(log_ref) * (log_ref - log_q)).sum(), np.exp(log_q)

    z = log_ref.copy()
    for _ in range(400):
        q = losses(z)[2]
        z -= 0.5 / (w.sum() + beta) * ((w.sum() * q - w) + beta * (q - np.exp(log_ref)))
    chunk, kl, _ = losses(z)
    assert kl <= (losses(log_ref)[0] - chunk) / beta + 1e-9


# -- 4.4


words = st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), min_size=1, max_size=4)


@given(st.lists(st.tuples(words, st.randoms(use_true_random=False)), min_size=1, max_size=6), positive, alphas)
def test_4_4_rollouts_that_are_equivalent_under_phi_give_the_same_weight(rollouts, prior, alpha):
    """Bag-of-words metrics do not see order, and no metric of words sees spacing or composition of characters."""
    chunk = "a b c d"
    for name, change in [
        *((name, shuffled) for name in ("rouge1", "jaccard", "bleu1")),
        *((n, restyled) for n in METRICS),
    ]:
        before, after = (
            np.array(phi(METRICS[name], chunk, [f(words, random) for words, random in rollouts]))
            for f in (lambda words, _: " ".join(words), change)
        )
        assert pi_teacher(before, prior, alpha) == pi_teacher(after, prior, alpha)


def shuffled(words, random):
    return " ".join(random.sample(words, len(words)))


def restyled(words, random):
    return random.choice([" ", "\n", "  ", "\u3000"]).join(words) + random.choice(["", " ", "\n"])


def phi(metric, chunk, texts):
    columns = (pa.chunked_array([pa.array(values)]) for values in ([chunk] * len(texts), texts))
    return similarities(metric, WordUnits(), *columns).to_pylist()


def test_4_4_holds_for_the_stage(tmp_path):
    first, second = scored(tmp_path, [["a b x", "c"], ["a  b\nx", " c "]], prior=0.3, alpha=1.0)
    assert first["pi_teacher"] == second["pi_teacher"]
    assert first["k_sem"] == pytest.approx(0.5 + 0.25)
