"""Arms that cost what the reference arm cost."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from omniopd.stages.audit.stage import audit
from omniopd.stages.generate.stage import generate
from omniopd.store.errors import BudgetReached
from omniopd.study.equal import equal_spend, fit_line
from omniopd.study.results import spent


@pytest.fixture
def reference(make_run, teacher, generated):
    run = make_run(questions=40, data={"per_round": 12}, teacher={"base_url": teacher.base_url})
    run.config_toml.write_text(run.config_toml.read_text() + "[teacher.price]\ninput = 1.0\noutput = 5.0\n")
    generated(run)
    audit(run, 0, run.config())
    return run


def settings(overrides):
    return dict(word.split("=") for word in overrides)


@pytest.mark.parametrize("equal", ["tokens", "usd"])
def test_what_an_arm_saves_on_a_prompt_buys_more_prompts_or_more_answers(reference, teacher, make_run, equal):
    round_, cost = reference.round(0), spent(reference.round(0))
    rows = round_.trajectories.read().to_pylist()
    prompt, response = (np.mean([len(row[name]) for row in rows]) for name in ("prompt_ids", "response_ids"))
    # The scripted teacher counts a token a character, and so does the student's tokenizer but for a few.
    asked = [len(body["prompt"]) for body in teacher.bodies]
    prompt_of = {row["trajectory_id"]: len(row["prompt_ids"]) for row in rows}
    read = [prompt_of[chunk["trajectory_id"]] + chunk["start"] for chunk in round_.chunks.read().to_pylist()]
    own, ratio = fit_line(np.array(read, float), np.array(asked, float))
    read_price, write_price = {"tokens": (1.0, 1.0), "usd": (1.0, 5.0)}[equal]
    total = cost.tokens if equal == "tokens" else 1e6 * cost.usd
    one = (own + ratio * prompt) * read_price + ratio * response * write_price
    answer = ratio * response * write_price

    config = reference.config(("train.objective=sft", "teacher.rollouts=1"))
    more = settings(equal_spend(round_, config, equal, "prompts"))
    cap = f"teacher.round_budget_{equal}"
    assert set(more) == {"data.per_round", cap}
    assert float(more[cap]) == pytest.approx(getattr(cost, equal))
    assert int(more["data.per_round"]) == math.ceil(total / one)

    several = settings(equal_spend(round_, config, equal, "answers"))
    assert int(several["teacher.rollouts"]) == math.ceil((total / 12 - (own + ratio * prompt) * read_price) / answer)
    price = "teacher.price={input = 1.0, output = 5.0}"
    everything = make_run(name="all").config(("train.objective=sft", price))
    assert "teacher.rollouts" in settings(equal_spend(round_, everything, equal, "prompts"))


def test_the_cap_ends_the_round(reference, make_run, teacher):
    run = make_run(
        name="arm", questions=40, data={"per_round": 12}, teacher={"base_url": teacher.base_url, "max_tokens": None}
    )
    changes = ("train.objective=sft", "teacher.rollouts=1")
    overrides = equal_spend(reference.round(0), reference.config(changes), "tokens", "prompts")
    config = run.config((*changes, *overrides))
    generate(run, 0, config)
    with contextlib.suppress(BudgetReached):
        audit(run, 0, config)
    assert spent(run.round(0)).tokens <= spent(reference.round(0)).tokens


def test_a_system_prompt_of_the_teacher_s_server_is_paid_for_once_a_request_and_not_with_each_token():
    read = np.array([30.0, 42.0, 55.0, 90.0])
    assert fit_line(read, 380 + 1.25 * read) == pytest.approx((380, 1.25))


@given(
    x=arrays(np.float64, st.integers(2, 20), elements=st.floats(1, 1000)),
    y=arrays(np.float64, 20, elements=st.floats(1, 1000)),
)
def test_the_line_goes_through_the_mean_and_neither_part_is_negative(x, y):
    intercept, slope = fit_line(x, y := y[: len(x)])
    assert intercept >= 0
    assert slope > 0
    assert intercept + slope * x.mean() == pytest.approx(y.mean())


def test_requests_of_one_length_are_a_ratio():
    assert fit_line(np.array([40.0, 40.0]), np.array([50.0, 50.0])) == (0.0, 1.25)
