"""What the provider bills is what the ledger charges; what it does not say is charged at its worst case."""

import contextlib
import json
import sqlite3

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from omniopd.stages.audit.json_body import read_json
from omniopd.stages.audit.rows import believable
from omniopd.stages.audit.stage import audit
from omniopd.stages.audit.teacher import Rollout
from omniopd.stages.generate.stage import generate
from omniopd.store.errors import BudgetReached, BusyError, TableError
from omniopd.store.ledger import Caps, Ledger
from omniopd.store.ledger_read import read_totals
from omniopd.store.usage import Usage

TEXT = [Rollout("ok", "and so on", "length")]
NONE = [Rollout("filtered", None, "content_filter")]
PRICE = "teacher.price={input=1.0, cached_input=0.1, output=5.0}"


@pytest.fixture
def run(make_run, teacher):
    run = make_run(teacher={"base_url": teacher.base_url, "max_concurrency": 1})
    generate(run, 0, run.config())
    return run


def requests(run):
    columns = "state, reserved_tokens, charged_tokens, charged_nusd, prompt_estimate, completion_estimate"
    with contextlib.closing(sqlite3.connect(run.ledger)) as db:
        db.row_factory = sqlite3.Row
        return db.execute(f"SELECT {columns} FROM requests ORDER BY reserved_at, rowid").fetchall()


def with_usage(teacher, usage):
    """Let the teacher answer well and bill so: a dict, or a function of the answer's own usage."""
    real = teacher.answer

    def answer(body):
        out = real(body)
        return out | {"usage": usage(out["usage"]) if callable(usage) else usage}

    teacher.answer = answer


def test_a_provider_that_bills_more_than_it_was_asked_for_is_charged_in_full_and_stops_the_stage_at_the_cap(
    run, teacher
):
    bills = []

    def thinks(usage):
        bills.append(usage["prompt_tokens"] + 10 * usage["completion_tokens"])
        return usage | {"completion_tokens": 10 * usage["completion_tokens"]}

    with_usage(teacher, thinks)
    cap = 3000
    with pytest.raises(BudgetReached) as caught:
        audit(run, 0, run.config((f"teacher.budget_tokens={cap}",)))
    totals = read_totals(run.ledger)
    assert totals.charged_tokens == sum(bills)
    first, *later = requests(run)
    assert first["charged_tokens"] == bills[0]
    assert all(row["charged_tokens"] <= row["reserved_tokens"] for row in later), "learned from the first bill"
    assert later[0]["reserved_tokens"] > later[0]["prompt_estimate"] + later[0]["completion_estimate"]
    assert sum(bills) <= cap + max(0, bills[0] - first["reserved_tokens"])
    assert "chunks of the lowest entropy are left out" in str(caught.value)
    assert len(run.round(0).rollouts.read()) == 4 * teacher.answered


def test_the_stage_says_by_how_much_bills_exceeded_the_cap(run, teacher):
    with_usage(teacher, {"prompt_tokens": 40_000, "completion_tokens": 16})
    said = r"39016 tokens beyond it are spent: by bills above the worst case, .* The \d+ chunks"
    with pytest.raises(BudgetReached, match=said):
        audit(run, 0, run.config(("teacher.budget_tokens=1000",)))
    assert (teacher.requests, read_totals(run.ledger).charged_tokens) == (1, 40_016)
    assert len(run.round(0).rollouts.read()) == 4, "what was paid for is kept"


def test_a_budget_that_is_lowered_below_what_is_spent_blames_no_bill(run, teacher):
    with pytest.raises(BudgetReached, match=r"reached\. The \d+ chunks"):
        audit(run, 0, run.config(("teacher.budget_tokens=1000",)))
    spent = read_totals(run.ledger).charged_tokens
    with pytest.raises(BudgetReached, match=rf"reached\. {spent - 100} tokens .* or before it was lowered\. The \d+"):
        audit(run, 0, run.config(("teacher.budget_tokens=100",)))
    assert read_totals(run.ledger).charged_tokens == spent


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        {"prompt_tokens": None, "completion_tokens": None},
        {"total_tokens": 90},
        {"prompt_tokens": 0, "completion_tokens": 16},
        {"prompt_tokens": 40, "completion_tokens": 0},
        {"prompt_tokens": 1 << 33, "completion_tokens": 16},
        {"prompt_tokens": "many", "completion_tokens": 16},
        {"prompt_tokens": 40.5, "completion_tokens": 16},
        {"prompt_tokens": -40, "completion_tokens": 16},
        {"prompt_tokens": True, "completion_tokens": 16},
        "20",
        [40, 16],
    ],
    ids=str,
)
def test_a_text_without_a_bill_is_charged_its_worst_case_and_kept(run, teacher, usage):
    with_usage(teacher, usage)
    cap = 1500
    with pytest.raises(BudgetReached):
        audit(run, 0, run.config((f"teacher.budget_tokens={cap}", PRICE)))
    rows = run.round(0).rollouts.read().to_pylist()
    assert len(rows) == 4 * teacher.answered == 4 * teacher.requests > 0
    assert {row["status"] for row in rows} == {"ok"}
    assert {row["prompt_tokens"] for row in rows} == {row["cost_usd"] for row in rows} == {None}
    for row in requests(run):
        assert row["state"] == "unknown"
        assert row["charged_tokens"] == row["reserved_tokens"] == row["prompt_estimate"] + row["completion_estimate"]
        assert row["charged_nusd"] == 1000 * row["prompt_estimate"] + 5000 * row["completion_estimate"]
    assert read_totals(run.ledger).charged_tokens <= cap


@pytest.mark.parametrize("written", [str, float, lambda tokens: f"{tokens}.0"], ids=["20", "20.0", "'20.0'"])
def test_a_bill_in_strings_or_floats_is_the_bill(run, teacher, written):
    bills = []

    def write(usage):
        bills.append((usage["prompt_tokens"], usage["completion_tokens"]))
        return {name: written(usage[name]) for name in ("prompt_tokens", "completion_tokens")}

    with_usage(teacher, write)
    audit(run, 0, run.config((PRICE,)))
    totals = read_totals(run.ledger)
    assert totals.unknown == 0
    assert (totals.prompt_tokens, totals.completion_tokens) == tuple(map(sum, zip(*bills, strict=True)))
    assert totals.charged_tokens == sum(map(sum, bills))
    assert totals.charged_nusd == 1000 * totals.prompt_tokens + 5000 * totals.completion_tokens


@pytest.mark.parametrize(
    ("usage", "tokens", "nusd"),
    [
        # A bill of grok-4.20 at xAI: cost_in_usd_ticks = 232856000, of which 10**10 are a dollar.
        (
            {
                "prompt_tokens": 10120,
                "completion_tokens": 1499,
                "total_tokens": 14428,
                "prompt_tokens_details": {"cached_tokens": 128},
                "completion_tokens_details": {"reasoning_tokens": 2809},
            },
            14428,
            23_285_600,
        ),
        # DeepSeek's context cache, and Kimi's.
        (
            {
                "prompt_tokens": 1000,
                "completion_tokens": 16,
                "total_tokens": 1016,
                "prompt_cache_hit_tokens": 640,
                "prompt_cache_miss_tokens": 360,
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
            1016,
            360 * 1250 + 640 * 200 + 16 * 2500,
        ),
        (
            {"prompt_tokens": 1000, "completion_tokens": 16, "total_tokens": 1016, "cached_tokens": 640},
            1016,
            360 * 1250 + 640 * 200 + 16 * 2500,
        ),
    ],
    ids=["xai", "deepseek", "kimi"],
)
def test_thinking_and_cached_tokens_are_read_where_each_provider_writes_them(run, teacher, usage, tokens, nusd):
    with_usage(teacher, usage)
    audit(run, 0, run.config(("teacher.price={input=1.25, cached_input=0.2, output=2.5}",)))
    totals = read_totals(run.ledger)
    assert totals.charged_tokens == tokens * teacher.requests
    assert totals.charged_nusd == nusd * teacher.requests


def test_more_cached_tokens_than_the_prompt_has_never_make_a_price_negative(run, teacher):
    with_usage(teacher, lambda usage: usage | {"prompt_tokens_details": {"cached_tokens": 10_000_000}})
    audit(run, 0, run.config((PRICE,)))
    for row in run.round(0).rollouts.read().to_pylist():
        assert row["cached_tokens"] == row["prompt_tokens"]
        assert row["cost_usd"] > 0
    totals = read_totals(run.ledger)
    assert totals.charged_nusd == 100 * totals.prompt_tokens + 5000 * totals.completion_tokens
    assert totals.unknown == 0


def test_half_a_character_does_not_make_an_answer_be_bought_again(run, teacher):
    def behave(body, number):
        answer = teacher.answer(body)
        for choice in answer["choices"]:
            choice["text"] = "so \ud83d is"
        return web.Response(text=json.dumps(answer), content_type="application/json")

    teacher.behave = behave
    audit(run, 0, run.config())
    assert teacher.requests == run.round(0).chunks.manifest.rows
    assert {row["text"] for row in run.round(0).rollouts.read().to_pylist()} == {"so \ufffd is"}
    assert read_totals(run.ledger).unknown == 0


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": "\\ud800"}', {"a": "\ufffd"}),
        (b'["\\udc00x", "\\ud83d\\ude00", "\\\\ud800"]', ["\ufffdx", "\U0001f600", "\\ud800"]),
        (b'"\xff\xfe"', "\ufffd\ufffd"),
        (b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd"),
    ],
)
def test_broken_characters_are_replaced(raw, value):
    assert read_json(raw) == value


@pytest.mark.parametrize("raw", [b"<html>", b"", b"NaN", b"[" * 100_000, b'{"a": "\\ud800"'])
def test_what_is_no_json_is_a_value_error(raw):
    with pytest.raises(ValueError):  # noqa: PT011 - whichever of the decoders says so
        read_json(raw)


@given(st.builds(Usage, *[st.integers(-10, 1 << 32)] * 4), st.sampled_from([TEXT, NONE]))
def test_what_is_believed_adds_up_and_nothing_else_is_believed(usage, rollouts):
    believed = believable(usage, rollouts)
    sane = 0 < usage.prompt_tokens < 1 << 31 and 0 <= usage.completion_tokens < 1 << 31
    assert (believed is not None) == (sane and (rollouts is NONE or usage.completion_tokens > 0))
    if believed is not None:
        assert (believed.prompt_tokens, believed.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
        assert min(believed.cached_tokens, believed.cache_write_tokens) >= 0
        assert believed.cached_tokens + believed.cache_write_tokens <= believed.prompt_tokens


def test_two_rounds_of_a_run_share_its_cap_because_they_take_turns(run, teacher):
    with contextlib.closing(Ledger(run.ledger, Caps(round_index=7))):
        with pytest.raises(BusyError, match=r"round 7, process") as caught:
            audit(run, 0, run.config())
        assert caught.value.exit_code == 3
    assert teacher.requests == 0
    audit(run, 0, run.config())


def test_an_audit_refuses_to_spend_without_the_runs_ledger_until_it_is_rebuilt(run, teacher):
    from typer.testing import CliRunner

    from omniopd.cli import app

    with pytest.raises(BudgetReached):
        audit(run, 0, run.config(("teacher.budget_tokens=1500", PRICE)))
    before, asked = read_totals(run.ledger), teacher.requests
    run.ledger.unlink()
    with pytest.raises(TableError, match="--rebuild-ledger"):
        audit(run, 0, run.config((PRICE,)))
    assert teacher.requests == asked
    done = CliRunner().invoke(app, ["audit", str(run.path), "--rebuild-ledger"])
    assert done.exit_code == 0
    assert f"the run has now spent {before.charged_tokens} tokens" in done.output
    assert read_totals(run.ledger) == before
    audit(run, 0, run.config((PRICE,)))
    assert len(run.round(0).rollouts.read()) == 4 * run.round(0).chunks.manifest.rows == 4 * teacher.requests
