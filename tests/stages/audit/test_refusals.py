"""What a teacher that does not answer means: who is refused, who pays, and what the same command asks for again."""

import collections
import os
import signal

import pytest
from aiohttp import web

from omniopd.stages.audit.health import TeacherHealth
from omniopd.stages.audit.stage import audit
from omniopd.store.errors import BudgetReached, Interrupted, TeacherError
from omniopd.store.ledger_read import read_totals

CREDIT = "Your credit balance is too low to access the Anthropic API."


@pytest.fixture
def run(make_run, teacher, generated, monkeypatch):
    monkeypatch.setattr("omniopd.stages.audit.sender.pause_s", lambda attempt, asked: 0.0)
    return generated(make_run(teacher={"base_url": teacher.base_url, "max_concurrency": 1}))


def refusal(status, message="no", **fields):
    headers = {"Retry-After": "0"} if status in (429, 503) else {}
    return web.json_response({"error": {"message": message, **fields}}, status=status, headers=headers)


def by_status(run):
    return collections.Counter(run.round(0).rollouts.read(["status"])["status"].to_pylist())


def wanted(run):
    return 4 * run.round(0).chunks.manifest.rows


def test_what_a_gateway_says_of_a_server_behind_it_is_charged_and_what_nobody_took_is_free(run, teacher):
    unknown, free = (408, 502, 504, 520, 524), (429, 500, 503, 521, 529)
    faults = dict(enumerate((*unknown, *free)))
    teacher.behave = lambda body, number: None if number % 2 else (
        refusal(faults[number // 2]) if number // 2 in faults else None
    )  # fmt: skip
    audit(run, 0, run.config())
    totals = read_totals(run.ledger)
    assert by_status(run) == {"ok": wanted(run)}
    assert teacher.requests == teacher.answered + len(faults)
    assert (totals.unknown, totals.requests) == (len(unknown), teacher.requests)


@pytest.mark.parametrize(
    "response",
    [
        refusal(400, CREDIT, type="invalid_request_error"),
        refusal(402, "Insufficient credits"),
        refusal(429, "You exceeded your current quota", code="insufficient_quota", type="insufficient_quota"),
        refusal(400, "Billing hard limit has been reached", code="billing_hard_limit_reached"),
        refusal(401, "wrong key"),
        refusal(403, "not for you"),
        refusal(404, "no such model"),
        web.json_response({"error": {"code": 402, "message": "Insufficient credits"}}),
        web.json_response({"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}),
    ],
    ids=lambda response: response.text[:60],
)
def test_an_account_that_is_refused_ends_the_stage_whatever_came_before_and_the_same_command_goes_on(
    run, teacher, response
):
    text, status = response.text, response.status

    def behave(body, number):
        return web.Response(text=text, status=status, content_type="application/json") if number >= 5 else None

    teacher.behave = behave
    with pytest.raises(TeacherError, match=r"refuses.* run the same command again") as caught:
        audit(run, 0, run.config())
    assert caught.value.exit_code == 3
    assert teacher.requests == 6, "nothing is sent after it"
    assert by_status(run) == {"ok": 20}
    assert read_totals(run.ledger).unknown == 0
    teacher.behave = lambda body, number: None
    audit(run, 0, run.config())
    assert by_status(run) == {"ok": wanted(run)}
    assert teacher.answered == run.round(0).chunks.manifest.rows


def test_a_limit_of_a_minute_is_no_empty_account(run, teacher):
    said = "You exceeded your current quota, please check your plan and billing details."
    teacher.behave = lambda body, number: refusal(429, said, status="RESOURCE_EXHAUSTED") if number == 3 else None
    audit(run, 0, run.config())
    assert by_status(run) == {"ok": wanted(run)}


def test_ten_refusals_in_a_row_end_the_stage_after_successes_too_and_are_not_recorded(run, teacher):
    teacher.behave = lambda body, number: refusal(400, "your plan has ended") if number >= 5 else None
    with pytest.raises(TeacherError, match="has begun to refuse every request: 400: your plan has ended"):
        audit(run, 0, run.config())
    assert teacher.requests == 15
    assert by_status(run) == {"ok": 20}
    teacher.behave = lambda body, number: None
    audit(run, 0, run.config())
    assert by_status(run) == {"ok": wanted(run)}


def test_a_refused_prompt_is_recorded_once_another_one_is_answered(run, teacher):
    poisoned = []

    def behave(body, number):
        poisoned.append(body["prompt"]) if number in (2, 3) else None
        return refusal(400, "too long") if body["prompt"] in poisoned else None

    teacher.behave = behave
    audit(run, 0, run.config())
    assert by_status(run) == {"ok": wanted(run) - 8, "failed": 8}
    assert read_totals(run.ledger).unknown == 0
    asked = teacher.requests
    audit(run, 0, run.config())
    assert teacher.requests == asked, "what is recorded is final"


def test_the_last_refusal_is_left_open_and_said(run, teacher, capsys):
    audit(run, 0, run.config())
    chunks = run.round(0).chunks.manifest.rows
    last = teacher.bodies[-1]["prompt"]
    run.round(0).rollouts.replace([], run.round(0).rollouts.manifest.made_with, complete=False)
    teacher.behave = lambda body, number: refusal(400, "too long") if body["prompt"] == last else None
    audit(run, 0, run.config())
    assert by_status(run) == {"ok": wanted(run) - 4}
    said = "4 rollouts were refused or not answered (400: too long), and nothing was answered after them"
    assert said in capsys.readouterr().err
    assert teacher.requests == 2 * chunks


def test_what_is_refused_takes_no_budget_from_the_next_chunks_until_ten_in_a_row_end_the_stage(run, teacher):
    teacher.behave = lambda body, number: refusal(400, "too long")
    with pytest.raises(TeacherError, match="refuses every request: 400: too long"):
        audit(run, 0, run.config(("teacher.budget_tokens=1500",)))  # the worst case of a few chunks
    assert teacher.requests == 10
    assert by_status(run) == {}


def test_a_budget_whose_chunks_are_refused_goes_to_the_next_ones(run, teacher):
    teacher.behave = lambda body, number: refusal(400, "too long") if number < 3 else None
    with pytest.raises(BudgetReached) as caught:
        audit(run, 0, run.config(("teacher.budget_tokens=1100",)))
    rows = by_status(run)
    assert (rows["ok"], rows["failed"]) == (4 * teacher.answered, 12)
    assert len(run.round(0).rollouts.existing_keys()) == rows.total(), "what was recorded meanwhile is not asked again"
    assert f"The {(wanted(run) - rows.total()) // 4} chunks of the lowest entropy" in str(caught.value)
    assert teacher.requests == teacher.answered + 3, "no chunk is asked for a second time"


def test_a_server_that_goes_away_at_the_end_leaves_rollouts_open_and_no_failed_row(run, teacher, capsys):
    audit(run, 0, run.config())
    last = teacher.bodies[-1]["prompt"]
    run.round(0).rollouts.replace([], run.round(0).rollouts.manifest.made_with, complete=False)
    teacher.behave = lambda body, number: refusal(503, "gone") if body["prompt"] == last else None
    options = ("teacher.max_attempts=2",)
    audit(run, 0, run.config(options))
    assert by_status(run) == {"ok": wanted(run) - 4}
    assert "4 rollouts were refused or not answered (503: gone)" in capsys.readouterr().err
    teacher.behave, asked = lambda body, number: None, teacher.requests
    audit(run, 0, run.config(options))
    assert by_status(run) == {"ok": wanted(run)}
    assert teacher.requests == asked + 1


def test_a_prompt_that_is_never_answered_is_recorded_once_another_one_is_answered_after_it(run, teacher):
    """Two prompts crash the server; the second recovers in its last turn, which is after the first one's."""
    poisoned, attempts = [], collections.Counter()

    def behave(body, number):
        poisoned.append(body["prompt"]) if number in (2, 4) else None
        attempts[body["prompt"]] += 1
        broken = body["prompt"] in poisoned[:1] or (body["prompt"] in poisoned and attempts[body["prompt"]] < 3)
        return refusal(500, "crash") if broken else None

    teacher.behave = behave
    audit(run, 0, run.config(("teacher.max_attempts=2",)))
    assert by_status(run) == {"ok": wanted(run) - 4, "failed": 4}
    assert read_totals(run.ledger).unknown == 0


def test_failed_rollouts_are_asked_for_again_when_told_to_and_the_money_stays_spent(run, teacher):
    teacher.behave = lambda body, number: refusal(400, "too long") if number == 2 else None
    audit(run, 0, run.config())
    spent, asked = read_totals(run.ledger).charged_tokens, teacher.requests
    audit(run, 0, run.config(), retry_failed=True)
    assert by_status(run) == {"ok": wanted(run)}
    assert teacher.requests == asked + 1
    assert read_totals(run.ledger).charged_tokens > spent
    assert run.round(0).rollouts.complete


def test_a_table_of_nothing_but_failures_pins_no_settings(run, teacher):
    audit(run, 0, run.config())
    table = run.round(0).rollouts
    rows = [row | {"status": "failed", "text": None} for row in table.read().to_pylist()[:8]]
    made_with = table.manifest.made_with
    table.replace([], made_with)
    table.append(rows)
    audit(run, 0, run.config(("teacher.temperature=0.5",)))
    assert by_status(run) == {"ok": wanted(run)}
    assert table.manifest.made_with != made_with


def test_an_error_in_a_200_is_no_answer_and_its_code_is_the_status(run, teacher):
    said = {
        1: {"error": {"code": 429, "message": "slow down"}},
        3: {"error": {"code": "502", "message": "provider hung up"}},
        5: {"error": {"message": "something went wrong"}},
        7: {"error": {"code": 400, "message": "this prompt is not for us"}},
    }
    teacher.behave = lambda body, number: web.json_response(said[number]) if number in said else None
    audit(run, 0, run.config())
    rows = run.round(0).rollouts.read().to_pylist()
    assert {row["finish_reason"] for row in rows if row["status"] == "failed"} == {"400: this prompt is not for us"}
    assert by_status(run) == {"ok": wanted(run) - 4, "failed": 4}
    assert read_totals(run.ledger).unknown == 1, "only the 502"
    assert teacher.requests == teacher.answered + len(said)


@pytest.mark.parametrize("status", [204, 301, 304])
def test_a_redirect_and_an_empty_answer_end_the_stage(run, teacher, status):
    headers = {"Location": "https://login.example.com/sso?key=1"}
    teacher.behave = lambda body, number: web.Response(status=status, headers=headers) if number >= 3 else None
    said = "it redirects to login.example.com" if status == 301 else "it sends no answer"
    with pytest.raises(TeacherError, match=rf"is no teacher: {status}: {said}\. Set teacher\.base_url"):
        audit(run, 0, run.config())
    assert teacher.requests == 4
    assert by_status(run) == {"ok": 12}
    assert read_totals(run.ledger).unknown == 0


@pytest.fixture
def heard(number):
    """A signal that is not ignored, as nohup and a shell's `&` have it for all that they start."""
    before = signal.signal(number, signal.SIG_DFL)
    yield number
    signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=str)
def test_a_signal_waits_for_the_answers_in_flight_and_none_is_bought_twice(run, teacher, heard):
    def behave(body, request):
        if request == 6:
            os.kill(os.getpid(), heard)

    teacher.behave = behave
    with pytest.raises(Interrupted) as caught:
        audit(run, 0, run.config(("teacher.max_concurrency=4",)))
    assert caught.value.exit_code == 130
    assert teacher.requests == teacher.answered
    assert by_status(run) == {"ok": 4 * teacher.answered}
    assert teacher.answered < run.round(0).chunks.manifest.rows
    audit(run, 0, run.config())
    assert teacher.answered == run.round(0).chunks.manifest.rows


def test_one_short_answer_does_not_make_all_requests_smaller(run, teacher):
    def behave(body, number):
        return web.json_response(short(body)) if number in shortened else None

    def short(body):
        answer = teacher.answer(body)
        return answer | {"choices": answer["choices"][:3]}

    shortened = {2}
    teacher.behave = behave
    audit(run, 0, run.config())
    assert by_status(run) == {"ok": wanted(run)}
    assert collections.Counter(body["n"] for body in teacher.bodies) == {4: wanted(run) // 4, 1: 1}


def test_health_forgets_refusals_at_each_answer():
    from omniopd.stages.audit.client import Outcome

    health = TeacherHealth(["http://there"])
    for _ in range(5):
        assert all(health.gave_up(Outcome("refused", "", 400, "too long")) is None for _ in range(9))
        health.answered()
