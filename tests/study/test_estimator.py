"""The studies beside plain references, simulations whose answer is known, and the shipped models."""

import math

import numpy as np
import pytest
import torch
from aiohttp import web
from typer.testing import CliRunner

from omniopd.cli import app
from omniopd.store.errors import InputError
from omniopd.store.schema import ESTIMATOR_STUDY, TRUTH
from omniopd.store.sections import Price, TeacherConfig
from omniopd.study.estimator.alpha import Evidence, optimum
from omniopd.study.estimator.compare import compare, means_of_subsets
from omniopd.study.estimator.echo_server import EchoServer, read_truth
from omniopd.study.estimator.oracle import Text
from omniopd.study.estimator.plot import chart, plot
from omniopd.study.estimator.white_box import WhiteBox


def simulated(rng, chunks=3000, rollouts=20, spread=0.25):
    """Chunks whose similarities are coins of known bias, and priors that are off by a known spread."""
    mu_C = rng.uniform(0.3, 0.7, chunks)
    prior_C = mu_C + rng.choice([-spread, spread], chunks)
    phi_CR = (rng.random((chunks, rollouts)) < mu_C[:, None]) * 1.0
    return mu_C, prior_C, phi_CR, np.arange(chunks) // 3


def test_all_rollouts_give_the_plain_mean_squared_error_and_correlation():
    rng = np.random.default_rng(0)
    true_C, prior_C, phi_CR, trajectory_C = simulated(rng, chunks=300)
    found = compare(phi_CR, prior_C, true_C, trajectory_C, 1.0, 20, seed=0)
    freq_C = phi_CR.mean(axis=1)
    bayes_C = (phi_CR.sum(axis=1) + prior_C) / 21
    assert found.mse_freq.value == pytest.approx(((freq_C - true_C) ** 2).mean())
    assert found.mse_bayes.value == pytest.approx(((bayes_C - true_C) ** 2).mean())
    assert found.corr_freq.value == pytest.approx(np.corrcoef(freq_C, true_C)[0, 1])
    assert found.corr_bayes.value == pytest.approx(np.corrcoef(bayes_C, true_C)[0, 1])
    assert found.mse_gain.value == pytest.approx(found.mse_freq.value - found.mse_bayes.value)


@pytest.mark.parametrize("n", [1, 5, 20])
def test_fewer_rollouts_have_the_error_of_eq_13(n):
    rng = np.random.default_rng(1)
    mu_C, prior_C, phi_CR, trajectory_C = simulated(rng)
    found = compare(phi_CR, prior_C, mu_C, trajectory_C, 1.0, n, seed=0)
    var = (mu_C * (1 - mu_C)).mean()
    assert found.mse_freq.value == pytest.approx(var / n, rel=0.1)
    assert found.mse_bayes.value == pytest.approx((n * var + 0.25**2) / (n + 1) ** 2, rel=0.1)


def test_subsets_are_drawn_without_replacement():
    subsets_CS = means_of_subsets(np.array([[0.0, 1.0]]), 1, np.random.default_rng(0))
    assert set(subsets_CS[0]) == {0.0, 1.0}
    assert means_of_subsets(np.array([[0.0, 1.0]]), 2, np.random.default_rng(0)).tolist() == [[0.5]]


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        mu_C, prior_C, phi_CR, trajectory_C = simulated(rng, chunks=150, rollouts=10)
        found = compare(phi_CR, prior_C, mu_C, trajectory_C, 1.0, 10, seed)
        # The expectation given these chunks' means: uniform in [0.3, 0.7].
        inside += found.mse_freq.low <= (0.25 - 0.4**2 / 12) / 10 <= found.mse_freq.high
    assert inside >= 50


def test_whole_trajectories_are_drawn_so_that_copies_of_a_chunk_do_not_narrow_the_interval():
    mu_C, prior_C, phi_CR, _ = simulated(np.random.default_rng(2), chunks=100)
    once = compare(phi_CR, prior_C, mu_C, np.arange(100), 1.0, 20, seed=0)
    copies = (np.repeat(a, 10, axis=0) for a in (phi_CR, prior_C, mu_C, np.arange(100)))
    ten_times = compare(*copies, 1.0, 20, seed=0)
    assert ten_times.mse_freq.low == pytest.approx(once.mse_freq.low)
    assert ten_times.mse_freq.high == pytest.approx(once.mse_freq.high)


def test_a_correlation_without_variance_is_not_defined():
    found = compare(np.zeros((9, 4)), np.full(9, 0.5), np.linspace(0, 1, 9), np.arange(9), 1.0, 4, seed=0)
    assert math.isnan(found.corr_freq.value)
    assert math.isnan(found.corr_gain.value)
    assert found.mse_freq.value > 0


def evidence_of(phi_CR, prior_C, trajectory_C):
    chunks, rollouts = phi_CR.shape
    return Evidence(phi_CR.mean(1), phi_CR.var(1, ddof=1), np.full(chunks, rollouts), prior_C, trajectory_C)


@pytest.mark.parametrize("spread", [0.1, 0.25])
def test_the_best_alpha_is_the_theorems(spread):
    mu_C, prior_C, phi_CR, trajectory_C = simulated(np.random.default_rng(3), chunks=6000, spread=spread)
    expected = (mu_C * (1 - mu_C)).mean() / spread**2
    for n in (5, 20):
        found = optimum(evidence_of(phi_CR, prior_C, trajectory_C), None, n, 1.0, seed=0)
        assert found.alpha.value == pytest.approx(expected, rel=0.15)
        assert found.alpha.low < expected < found.alpha.high
        var = (mu_C * (1 - mu_C)).mean()
        assert found.mse_at_zero == pytest.approx(var / n, rel=0.05)
        assert found.mse_at_config == pytest.approx((n * var + spread**2) / (n + 1) ** 2, rel=0.05)
        assert found.mse_at_optimum <= min(found.mse_at_zero, found.mse_at_config)


def test_against_a_target_the_best_alpha_is_the_best_of_a_grid():
    rng = np.random.default_rng(4)
    mu_C, prior_C, phi_CR, trajectory_C = simulated(rng, chunks=4000)
    target_C = np.clip(0.7 * mu_C + 0.3 * prior_C, 0, 1)
    found = optimum(evidence_of(phi_CR, prior_C, trajectory_C), target_C, 20, 1.0, seed=0)
    grid = np.linspace(0.1, 60, 600)
    k_C = phi_CR.sum(axis=1)
    errors = [(((k_C + a * prior_C) / (20 + a) - target_C) ** 2).mean() for a in grid]
    assert found.alpha.value == pytest.approx(grid[int(np.argmin(errors))], abs=0.2)
    assert found.mse_at_optimum == pytest.approx(min(errors), rel=1e-3)


def test_a_perfect_prior_needs_no_rollouts_and_a_silent_one_none_of_it():
    mu_C, _, phi_CR, trajectory_C = simulated(np.random.default_rng(5))
    assert optimum(evidence_of(phi_CR, mu_C, trajectory_C), None, 10, 1.0, seed=0).alpha.high == math.inf
    sure_CR = np.repeat(np.round(mu_C)[:, None], 20, axis=1)
    assert optimum(evidence_of(sure_CR, mu_C, trajectory_C), None, 10, 1.0, seed=0).alpha.value == 0.0


# -- the white-box teacher


def test_a_chunks_log_probability_is_the_models_own(student):
    white_box = WhiteBox(student, "float32")
    texts = [Text("27+58-14+35\n27+5", "8=85\n8"), Text("1", "2"), Text("27+58-14+35\n", "27+58=85\n85-14=71")]
    truths = white_box.truths(texts)
    for text, truth in zip(texts, truths, strict=True):
        before = white_box._tokenizer(text.before)["input_ids"]
        both = white_box._tokenizer(text.before + text.chunk)["input_ids"]
        with torch.inference_mode():
            log_probs = white_box._model(torch.tensor([both])).logits[0].log_softmax(dim=-1)
        expected = sum(float(log_probs[i - 1, both[i]]) for i in range(len(before), len(both)))
        assert truth.logprob == pytest.approx(expected, abs=1e-4)
        assert (truth.tokens, truth.straddled) == (len(text.chunk), False)


def test_all_continuations_of_one_token_have_probability_one_together(student):
    white_box = WhiteBox(student, "float32")
    tokenizer = white_box._tokenizer
    single = {tokenizer.decode([i]) for i in range(len(tokenizer))}
    single = sorted(text for text in single if len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1)
    total = sum(math.exp(truth.logprob) for truth in white_box.truths([Text("27+58-14+35\n", t) for t in single]))
    assert 0.95 < total <= 1 + 1e-5


class Merging:
    """A tokenizer that joins "ab" into one token, as the demo's never would."""

    bos_token, eos_token_id = None, 2

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(c) for c in text.replace("ab", "\x07")]}


def test_a_chunk_that_begins_inside_a_token_is_conditioned_on_what_the_teacher_read(student):
    white_box = WhiteBox(student, "float32")
    white_box._tokenizer = Merging()
    inside = white_box._tokens(Text("1a", "b2"))
    assert inside.ids == [ord(c) for c in "1ab2"]
    assert (inside.chunk_tokens, inside.straddled) == (2, True)
    clean = white_box._tokens(Text("1", "ab2"))
    assert (clean.ids, clean.chunk_tokens, clean.straddled) == ([ord("1"), 7, ord("2")], 2, False)


def test_a_text_beyond_the_context_is_refused(student):
    with pytest.raises(InputError, match="beyond the white-box teacher's context"):
        WhiteBox(student, "float32").truths([Text("1+" * 300, "2")])


def test_a_server_gives_the_log_probs_of_the_tokens_inside_the_chunk():
    logprobs = {"text_offset": [0, 2, 3, 5, 6], "token_logprobs": [None, -1.0, -0.5, -0.25, -9.0]}
    truth = read_truth(Text("ab", "cdef"), logprobs)
    assert (truth.logprob, truth.tokens, truth.straddled) == (-1.75, 3, False)
    across = read_truth(Text("abcd", "ef"), logprobs)
    assert (across.logprob, across.tokens, across.straddled) == (-0.25, 1, True)


def test_a_server_is_asked_for_its_prompts_log_probs(teacher):
    def echo(body, number):
        assert (body["echo"], body["max_tokens"]) == (True, 1)
        offsets = list(range(len(body["prompt"]) + 1))
        logprobs = {"text_offset": offsets, "token_logprobs": [None, *[-float(i) for i in offsets[1:]]]}
        return web.json_response({"choices": [{"logprobs": logprobs}]})

    teacher.behave = echo
    server = EchoServer(TeacherConfig(model="scripted", base_url=teacher.base_url))
    assert [truth.logprob for truth in server.truths([Text("ab", "cd"), Text("a", "b")])] == [-5.0, -1.0]


def test_a_server_without_log_probs_and_one_that_costs_money_are_refused(teacher):
    config = TeacherConfig(model="scripted", base_url=teacher.base_url)
    with pytest.raises(InputError, match="does not return the log-probs of a prompt"):
        EchoServer(config).truths([Text("a", "b")])
    with pytest.raises(InputError, match="past the ledger"):
        EchoServer(config.model_copy(update={"price": Price(input=1, output=1)}))


# -- the picture


def table_3(*phis, undefined=()):
    """Rows as the study has them; the correlation of some phis is not defined."""
    keys = [f"{what}_{name}" for what in ("mse", "corr") for name in ("freq", "bayes")]
    rows = []
    for i, phi in enumerate(phis):
        for n in (1, 2, 5, 10):
            row = {"phi": phi, "n": n}
            for j, key in enumerate(keys):
                value = math.nan if phi in undefined and key.startswith("corr") else 0.1 * (i + 1) + (j + 1) / n / 20
                row |= {key: value, f"{key}_low": value - 0.02, f"{key}_high": value + 0.02}
            rows.append(row)
    return rows


def rows_of_panels(rows):
    """Altair lifts the data of a lone row of panels to the top."""
    whole = chart(rows).to_dict()
    return [{"data": whole.get("data"), **panels} for panels in whole["vconcat"]]


def series_of(panels):
    return [(p["phi"], p["n"], p["estimator"], p["value"], p["low"], p["high"]) for p in panels["data"]["values"]]


def test_the_picture_holds_every_value_with_its_interval():
    rows = table_3("rougeL", "edit")
    panels = rows_of_panels(rows)
    assert [one["spec"]["layer"][1]["encoding"]["y"]["title"] for one in panels] == [
        "mean squared error",
        "Pearson correlation",
    ]
    for one, measure in zip(panels, ("mse", "corr"), strict=True):
        expected = [
            (row["phi"], row["n"], name, *(row[f"{measure}_{short}{end}"] for end in ("", "_low", "_high")))
            for row in rows
            for short, name in (("freq", "frequentist"), ("bayes", "Bayesian"))
        ]
        assert series_of(one) == expected
        assert one["facet"]["column"]["sort"] == ["rougeL", "edit"], "as in the table"
        band, line = (layer["encoding"] for layer in one["spec"]["layer"])
        assert (band["y"]["field"], band["y2"]["field"], line["y"]["field"]) == ("low", "high", "value")
        assert line["x"]["scale"]["type"] == "log"
        assert line["x"]["axis"]["values"] == [1, 2, 5, 10]


@pytest.mark.parametrize("phis", [("edit", "exact"), ("exact",)])
def test_what_is_not_defined_is_left_out_of_the_picture(tmp_path, phis):
    rows = table_3(*phis, undefined=("exact",))
    errors, *correlations = rows_of_panels(rows)
    assert {point[0] for point in series_of(errors)} == set(phis)
    assert {point[0] for panels in correlations for point in series_of(panels)} == set(phis) - {"exact"}
    assert plot(rows, tmp_path / "estimator.png").read_bytes().startswith(b"\x89PNG")


# -- the commands


@pytest.fixture
def run(make_run, teacher):
    """A scored run of the shipped student."""
    run = make_run(teacher={"base_url": teacher.base_url})
    for command in ("generate", "audit", "score"):
        invoke(command, run.path)
    return run


def invoke(*args, code=0):
    result = CliRunner().invoke(app, [*map(str, args)])
    if code == 0:
        assert result.exit_code == 0, result.output
    return result


def test_the_estimator_study_prints_table_3_and_keeps_it(run, student):
    text = invoke("study", "estimator", run.path, "--teacher", student).output
    table = run.round(0).study("estimator", ESTIMATOR_STUDY)
    rows = table.read().to_pylist()
    assert {row["phi"] for row in rows} == {"edit", "rouge1", "rougeL", "jaccard", "bleu1", "bleu2", "exact"}
    assert {row["n"] for row in rows} == {1, 2, 4}
    assert "36 chunks of 12 trajectories, 0 excluded: fewer than 4 rollouts" in text
    assert "Bayes is better" in text
    assert (table.folder / "estimator.png").read_bytes().startswith(b"\x89PNG")
    for row in rows:
        assert row["mse_bayes_low"] <= row["mse_bayes"] <= row["mse_bayes_high"]


def test_the_truth_is_computed_once_for_a_teacher(run, student, monkeypatch):
    invoke("study", "estimator", run.path, "--teacher", student)
    before = run.round(0).study("truth", TRUTH).manifest.parts
    monkeypatch.setattr("omniopd.study.estimator.study._oracle", None)
    invoke("study", "alpha", run.path, "--teacher", student)
    assert run.round(0).study("truth", TRUTH).manifest.parts == before


def test_the_alpha_study_needs_no_teacher_and_takes_one(run, student):
    assert "the expected similarity" in invoke("study", "alpha", run.path).output
    assert "the teacher's true probability" in invoke("study", "alpha", run.path, "--teacher", student).output


def test_a_study_before_its_stage_or_with_too_few_rollouts_is_one_clear_line(run, student):
    result = invoke("study", "alpha", run.path, "--set", "score.alpha=7", code=3)
    assert "Run `omniopd score" in str(result.exception)
    result = invoke("study", "estimator", run.path, "--teacher", student, "--set", "teacher.rollouts=9", code=3)
    assert "Only 0 trajectories have chunks with all 9 rollouts" in str(result.exception)
