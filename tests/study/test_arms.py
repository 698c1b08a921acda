"""Which arms a study has, and what is said of their figures: against scipy, simulations and plain arithmetic."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from omniopd.store.config import config_of
from omniopd.store.errors import ConfigError, UsageError
from omniopd.study.arms import (
    REFERENCE,
    ablation_arms,
    arm_values,
    compare_arms,
    default_grids,
    parse_grids,
    sensitivity_arms,
)
from omniopd.study.results import BEFORE
from omniopd.study.statistics import paired_by_question, paired_by_seed, t_interval
from omniopd.study.table import markdown, summarise

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8)


def base_of(**sections):
    values = {
        "student": {"model": "student"},
        "data": {"prompts": "prompts.jsonl", "per_round": 256},
        "teacher": {"model": "teacher", "rollouts": 8, "max_tokens": 6},
    }
    for section, keys in sections.items():
        values.setdefault(section, {}).update(keys)
    return config_of(values, "")


# -- arms


def test_compare_names_what_it_cannot_run_and_why():
    arms, missing = compare_arms(base_of(), "tokens")
    assert [arm.name for arm in arms] == ["omniopd", "constant", "sft", "sft answers", "draft"]
    assert {one.name: one.reason.partition("(")[2] for one in missing} == {
        "opd": "train.teacher is not set)",
        "grpo": "data.answer is not set)",
    }
    arms, missing = compare_arms(
        base_of(train={"teacher": "t"}, data={"answer": "a"}, score={"centre": "batch_mean"}), "tokens"
    )
    assert [arm.name for arm in arms] == [
        "omniopd", "constant", "sft", "sft answers", "draft", "opd", "grpo", "omniopd paper"
    ]  # fmt: skip
    assert missing == []
    assert len({arm.folder for arm in arms}) == 8


def test_every_arm_of_every_study_is_a_config_and_the_reference_has_no_change():
    base = base_of(
        train={"teacher": "t"}, data={"answer": "a"}, score={"centre": "batch_mean"}, run={"rounds": 2},
        eval={"benchmark": "aime24", "samples": 4},
    )  # fmt: skip
    for arms, _ in (compare_arms(base, "usd"), ablation_arms(base), sensitivity_arms(base, {})):
        assert arms[0].name == arms[0].folder == REFERENCE
        assert not any(arm.folder == REFERENCE for arm in arms[1:])
        for arm in arms:
            config = config_of(arm_values(base, arm, 3), "")
            assert (config.run, config.eval) == (base.run, base.eval.model_copy(update={"seed": 3}))
            for key, value in arm.changes.items():
                section, name = key.split(".")
                assert getattr(getattr(config, section), name) == value


def test_sft_is_not_cut_to_the_length_of_a_chunk():
    base = base_of()
    sft = compare_arms(base, "tokens")[0][2]
    assert config_of(arm_values(base, sft, 0), "").teacher.max_tokens is None
    assert sft.equal == "tokens"
    assert sft.folder != compare_arms(base, "usd")[0][2].folder


def test_draft_has_its_own_defaults_and_not_the_bases_settings_of_a_chunk():
    base = base_of(teacher={"rollouts": 8, "max_tokens": 6, "temperature": 1.0}, train={"beta": 0.1})
    draft = next(arm for arm in compare_arms(base, "tokens")[0] if arm.name == "draft")
    config = config_of(arm_values(base, draft, 0), "")
    assert (config.select.keep, config.teacher.rollouts, config.teacher.max_tokens) == ("earliest", 1, None)
    assert (config.teacher.temperature, config.train.beta, config.train.epochs) == (0.5, 0.0, 2)
    assert (draft.equal, draft.more) == ("tokens", "prompts")


def test_grpo_has_as_many_trajectories_as_the_others():
    base = base_of(data={"answer": "a"}, generate={"samples_per_prompt": 2})
    grpo = next(arm for arm in compare_arms(base, "tokens")[0] if arm.name == "grpo")
    config = config_of(arm_values(base, grpo, 0), "")
    assert config.data.per_round * config.generate.samples_per_prompt == 256 * 2


def test_a_seed_moves_all_seeds_and_only_those():
    base = base_of(data={"seed": 7}, teacher={"seed": 11})
    arms = compare_arms(base, "tokens")[0]
    for arm in arms:
        config = config_of(arm_values(base, arm, 3), "")
        assert (config.data.seed, config.generate.seed, config.select.seed) == (10, 3, 3)
        assert (config.teacher.seed, config.train.seed, config.eval.seed) == (14, 3, 3)
    assert "seed" not in arm_values(base_of(), arms[0], 3)["teacher"]


def test_the_same_variant_has_the_same_folder_in_all_studies():
    base = base_of(score={"centre": "batch_mean"})
    compared = {arm.name: arm.folder for arm in compare_arms(base, "tokens")[0]}
    ablated = {arm.name: arm.folder for arm in ablation_arms(base)[0]}
    assert compared["constant"] == ablated["constant weights"]
    assert compared["omniopd paper"] == ablated["uncentred weights"]
    grid = sensitivity_arms(base, {"score.alpha": [0, 1.0]})[0]
    assert [arm.folder for arm in grid][1:] == [ablated["w/o Bayesian smoothing"]]


def test_default_grids_hold_the_base_and_more():
    base = base_of()
    for key, values in default_grids(base).items():
        section, name = key.split(".")
        assert getattr(getattr(base, section), name) in values
        assert len(values) == len(set(values)) >= 3


@pytest.mark.parametrize("word", ["score.alpha", "score.alpha=", "alpha=1", "score.alfa=1", "=1", "score=1"])
def test_a_wrong_grid_is_refused(word):
    with pytest.raises(UsageError, match="--grid"):
        parse_grids([word])


@pytest.mark.parametrize("word", ["run.rounds=1,2", "eval.temperature=0.6,1"])
def test_a_grid_over_what_all_arms_share_is_refused(word):
    with pytest.raises(UsageError, match="is the same for all arms"):
        parse_grids([word])


def test_grids_are_read_as_numbers_where_they_are():
    grids = parse_grids(["score.alpha=0,0.5", "score.phi=edit,rouge1", "score.alpha=4"])
    assert grids == {"score.alpha": [0, 0.5, 4], "score.phi": ["edit", "rouge1"]}
    with pytest.raises(ConfigError, match=r"score\.phi"):
        config_of(arm_values(base_of(), sensitivity_arms(base_of(), {"score.phi": ["no"]})[0][1], 0), "")


# -- statistics


@given(SCORES)
def test_intervals_and_p_over_seeds_are_scipys(pairs):
    a_S, b_S = (np.array(values) for values in zip(*pairs, strict=True))
    found, gain = t_interval(a_S), paired_by_seed(a_S, b_S)
    spread = (a_S - b_S).std(ddof=1)
    if a_S.std(ddof=1) > 1e-9:
        low, high = scipy.stats.t.interval(0.95, len(a_S) - 1, a_S.mean(), scipy.stats.sem(a_S))
        assert (found.low, found.high) == pytest.approx((low, high))
    if spread > 1e-9:
        expected = scipy.stats.ttest_rel(a_S, b_S)
        assert gain.p == pytest.approx(expected.pvalue, abs=1e-12)
        interval = expected.confidence_interval()
        assert (gain.gain.low, gain.gain.high) == pytest.approx((interval.low, interval.high), abs=1e-12)


def test_one_seed_has_no_interval():
    assert math.isnan(t_interval(np.array([0.5])).low)
    assert math.isnan(paired_by_seed(np.array([0.5]), np.array([0.4])).p)


def simulated(rng, gain, seeds=5, questions=200, spread_seed=0.02, spread_question=0.3):
    """Two arms: questions differ, seeds shift all questions, answers are coins."""
    question_Q = np.clip(0.5 + rng.normal(0, spread_question, questions), 0.05, 0.85)
    shift_A1 = rng.normal(0, spread_seed, (2, seeds))
    chance_ASQ = question_Q + shift_A1[:, :, None] + np.array([gain, 0])[:, None, None]
    return (rng.random((2, seeds, questions)) < chance_ASQ) * 1.0


def test_the_interval_over_seeds_holds_the_gain_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        a_SQ, b_SQ = simulated(rng, 0.1)
        gain = paired_by_seed(a_SQ.mean(axis=1), b_SQ.mean(axis=1)).gain
        inside += gain.low <= 0.1 <= gain.high
    assert 0.92 <= inside / 400 <= 0.98


def test_the_interval_over_questions_holds_the_gain_where_seeds_do_not_matter():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(60):
        a_SQ, b_SQ = simulated(rng, 0.1, spread_seed=0.0)
        gain = paired_by_question(a_SQ, b_SQ).gain
        inside += gain.low <= 0.1 <= gain.high
    assert inside / 60 >= 0.87


def test_seeds_of_one_question_are_not_counted_as_questions_of_their_own():
    """Copies of one seed say no more than one: the interval stays as wide."""
    rng = np.random.default_rng(2)
    a_SQ, b_SQ = simulated(rng, 0.1, seeds=1)
    once = paired_by_question(a_SQ, b_SQ).gain
    often = paired_by_question(np.repeat(a_SQ, 5, axis=0), np.repeat(b_SQ, 5, axis=0)).gain
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


# -- the table


def test_the_table_pairs_every_arm_with_the_reference_of_its_seed():
    rng = np.random.default_rng(3)
    means = {(arm, seed): (rng.random(50) < 0.5) * 1.0 for arm in (REFERENCE, "sft") for seed in (0, 1, 2)}
    before = {seed: (rng.random(50) < 0.3) * 1.0 for seed in (0, 1, 2)}
    cost = {"teacher_prompt_tokens": 10, "teacher_completion_tokens": 5, "teacher_usd": 0.25, "billed_tokens": 15,
            "trajectories": 4, "train_steps": 2, "benchmark": "b", "questions": 50, "samples": 1}  # fmt: skip
    rows = [{"arm": arm, "seed": seed, "rounds": 6, **cost} for arm, seed in means]
    rows += [{"arm": BEFORE, "seed": seed, "rounds": 0, **cost} for seed in before]
    lines = {line.arm: line for line in summarise(rows, means, before)}
    assert list(lines) == [BEFORE, REFERENCE, "sft"]
    assert lines[REFERENCE].by_seed is None
    gain = np.mean([means["sft", seed].mean() - means[REFERENCE, seed].mean() for seed in (0, 1, 2)])
    assert lines["sft"].by_seed.gain.value == pytest.approx(gain) == lines["sft"].by_question.gain.value
    text = markdown("compare", list(lines.values()), compare_arms(base_of(), "tokens"), rows, "tokens")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(line) for line in table}) == 1, "columns are aligned"
    assert "0.25" in text
    assert "opd: not run" in text
    assert "50 questions x 1 samples, 3 seeds, after 6 rounds" in text
