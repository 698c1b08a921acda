"""What `plan` predicts, and what `status` holds against the bill."""

import functools

import pytest

from omniopd.stages.audit.forecast import Forecast, Shape, continuations, forecast
from omniopd.stages.audit.price import Rates
from omniopd.stages.audit.stage import audit
from omniopd.stages.audit.teacher import max_tokens_for
from omniopd.stages.audit.todo import shape_of
from omniopd.store.config import Config
from omniopd.store.ledger_read import read_forecast, read_totals
from omniopd.view.plan import describe, forecasts, plan
from omniopd.view.status import read_status

RATES = Rates(1.0, 10.0, 0.1, 1.0, "test 1")
SHAPE = Shape(chunks=30, prefix_tokens=9000, new_tokens=2000, max_tokens=600)


def config(**teacher):
    return Config.model_validate({"teacher": {"rollouts": 10, **teacher}})


@pytest.mark.parametrize(
    ("kind", "model", "each"),
    [("openai", "", 1), ("anthropic", "", 10), ("gemini", "gemini-2.5-flash", 2), ("gemini", "gemini-3.6-flash", 10)],
)
def test_requests_and_prompts_follow_from_how_many_samples_a_request_may_ask_for(kind, model, each):
    one = forecast(SHAPE, config(kind=kind, model=model), RATES, "live", "prefill")
    assert one.requests == 30 * each
    assert one.prompt_tokens == 9000 * each
    assert one.cached_tokens == 9000 * each - 2000
    assert one.completion_tokens == 6000
    assert one.usd == pytest.approx((2000 + 0.1 * (9000 * each - 2000) + 60_000) / 1e6)
    assert one.usd_uncached == pytest.approx((9000 * each + 60_000) / 1e6)


def test_a_batch_costs_half_and_counts_on_no_cache():
    live, batch = (forecast(SHAPE, config(), RATES, mode, "prefill") for mode in ("live", "batch"))
    assert batch.usd == batch.usd_uncached == pytest.approx(live.usd_uncached / 2)
    assert batch.cached_tokens == 0
    assert batch.prices == "test 1, batch at half"


def test_being_told_to_go_on_costs_tokens_in_each_request():
    told = forecast(SHAPE, config(kind="anthropic"), RATES, "live", "instruct")
    assert told.prompt_tokens > 10 * 9000
    assert told.prompt_tokens - told.cached_tokens > 2000


def test_adaptive_rollouts_are_counted_at_the_most_with_a_request_for_each_look():
    one = forecast(SHAPE, config(rollouts="adaptive", max_rollouts=10), RATES, "live", "completion")
    assert one.requests == 30 * 4, "at 4, 6, 8 and 10 rollouts"
    assert one.completion_tokens == 6000


def test_continuations_are_those_of_the_kind_or_the_configured_one():
    assert continuations("openai", "auto") == ("completion", "prefill", "instruct")
    assert continuations("gemini", "auto") == ("prefill", "instruct")
    assert continuations("openai", "prefill") == ("prefill",)


def test_the_prediction_of_a_round_is_kept_and_stands_beside_the_bill(make_run, teacher, generated):
    run = make_run(questions=6, teacher={"base_url": teacher.base_url})
    settings = run.config(("teacher.price={input=1.0, cached_input=0.5, output=5.0}",))
    generated(run)
    audit(run, 0, settings)
    kept, totals = read_forecast(run.ledger, 0), read_totals(run.ledger)
    trajectories = {t["trajectory_id"]: len(t["prompt_ids"]) for t in run.round(0).trajectories.read().to_pylist()}
    chunks = run.round(0).chunks.read().to_pylist()
    prefixes = [trajectories[c["trajectory_id"]] + c["start"] for c in chunks]
    assert (
        shape_of(run.round(0), functools.partial(max_tokens_for, settings)).prefix_tokens
        == sum(prefixes)
        == kept["prompt_tokens"]
    )
    assert kept["requests"] == totals.requests == len(chunks)
    # The scripted teacher counts characters, as the shipped tokenizer does, and answers with 4 tokens of 12.
    assert totals.prompt_tokens == kept["prompt_tokens"]
    assert totals.completion_tokens <= kept["completion_tokens"] == 4 * 12 * len(chunks)
    (round_,) = read_status(run, settings).rounds
    assert round_.predicted == Forecast(**kept)
    assert (round_.predicted.mode, round_.predicted.continuation) == ("live", "completion")
    audit(run, 0, run.config(("teacher.mode=live",)))
    assert read_forecast(run.ledger, 0) == kept, "the first one stands"


def test_plan_names_each_mode_and_the_price_table(make_run):
    run = make_run(questions=6)
    settings = run.config(("teacher.price={input=1.0, output=5.0}",))
    found = plan(run, settings)
    ways = [(one.mode, one.continuation) for one in forecasts(found, settings)]
    assert ways == [(mode, way) for mode in ("live", "batch") for way in ("completion", "prefill", "instruct")]
    text = describe(found, settings)
    assert "batch, instruct" in text
    assert "prices   teacher.price;" in text
    named = run.config(("teacher.model=claude-haiku-4-5", "teacher.kind=anthropic", 'teacher.base_url=""'))
    assert "genai-prices" in describe(plan(run, named), named)
