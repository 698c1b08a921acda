"""A live audit at servers that take less than they are given, that think, or that always say the same."""

import contextlib
import json
import sqlite3

import pytest
from aiohttp import web

from omniopd.method.stopping import stopping_rule
from omniopd.stages.audit.context import AuditContext
from omniopd.stages.audit.silence import SilenceWatch
from omniopd.stages.audit.stage import audit
from omniopd.stages.audit.teacher import Rollout
from omniopd.stages.audit.todo import Work
from omniopd.stages.audit.variety import VarietyWatch
from omniopd.store.config import made_with
from omniopd.store.conversation import Conversation
from omniopd.store.errors import BudgetReached, TeacherError
from omniopd.store.ledger_read import read_totals
from omniopd.store.model import bos_text
from omniopd.view.status import read_status

CONCURRENCY = 4


@pytest.fixture
def run(make_run, teacher, generated):
    return generated(make_run(teacher={"base_url": teacher.base_url, "max_concurrency": CONCURRENCY}))


def rows_of(run):
    return run.round(0).rollouts.read().to_pylist()


def refuse(message, status=400):
    return web.json_response({"error": {"message": message}}, status=status)


def assert_all_are_answered_and_refusals_are_free(run, refused):
    rows = rows_of(run)
    chunks = run.round(0).chunks.manifest.rows
    assert len({(row["chunk_id"], row["rollout_index"]) for row in rows}) == len(rows) == 4 * chunks
    assert {row["status"] for row in rows} == {"ok"}
    assert 1 <= refused <= CONCURRENCY, "what was in flight when the first refusal came, and nothing after it"
    totals = read_totals(run.ledger)
    billed = sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows)
    assert (totals.charged_tokens, totals.unknown, totals.reserved_tokens) == (billed, 0, 0)


def test_a_server_that_wants_n_to_be_1_is_told_so_once_and_all_is_answered(run, teacher, capsys):
    teacher.behave = lambda body, number: refuse("'n' : number must be at most 1") if body.get("n", 1) > 1 else None
    audit(run, 0, run.config())
    refused = sum(body.get("n", 1) > 1 for body in teacher.bodies)
    assert_all_are_answered_and_refusals_are_free(run, refused)
    assert capsys.readouterr().err.count("takes at most n = 1") == 1
    assert teacher.requests - refused == 4 * run.round(0).chunks.manifest.rows


def test_a_server_without_open_messages_is_asked_by_instruction_and_the_rows_say_so(run, teacher, capsys):
    teacher.chat_only = True
    detail = [{"type": "extra_forbidden", "loc": ["body", "continue_final_message"], "msg": "Extra inputs"}]
    teacher.behave = lambda body, number: (
        web.json_response({"detail": detail}, status=422) if "continue_final_message" in body else None
    )
    audit(run, 0, run.config())
    refused = sum("continue_final_message" in body for body in teacher.bodies)
    assert_all_are_answered_and_refusals_are_free(run, refused)
    assert capsys.readouterr().err.count("continuation = instruct") == 1
    started = {chunk["chunk_id"] for chunk in run.round(0).chunks.read().to_pylist() if chunk["prefix_text"]}
    assert {row["continuation"] for row in rows_of(run) if row["chunk_id"] in started} == {"instruct"}


def test_a_configured_prefill_that_is_refused_is_an_error_and_no_other_continuation(run, teacher):
    teacher.chat_only = True
    teacher.behave = lambda body, number: refuse("property 'continue_final_message' is unsupported")
    with pytest.raises(TeacherError, match="continue_final_message"):
        audit(run, 0, run.config(('teacher.continuation="prefill"',)))
    assert all("continue_final_message" in body for body in teacher.bodies if len(body["messages"]) > 1)


def test_what_a_refusal_taught_is_known_to_the_next_audit_of_the_run_and_said_again(run, teacher, capsys):
    def behave(body, number):
        if "temperature" in body:
            return refuse("Unsupported parameter: temperature")
        return refuse("'n' : number must be at most 1") if body.get("n", 1) > 1 else None

    teacher.behave = behave
    with pytest.raises(BudgetReached):
        audit(run, 0, run.config(("teacher.budget_tokens=400",)))
    answered, asked = teacher.answered, teacher.requests
    assert 0 < answered < asked
    capsys.readouterr()
    audit(run, 0, run.config())
    chunks = run.round(0).chunks.manifest.rows
    assert teacher.answered == 4 * chunks
    assert teacher.requests - asked == teacher.answered - answered, "nothing is sent in a form that was refused"
    said = capsys.readouterr().err
    assert said.count("takes at most n = 1") == said.count("does not take temperature") == 1
    assert {row["status"] for row in rows_of(run)} == {"ok"}


def test_other_settings_of_the_teacher_have_learned_nothing_and_no_key_is_kept(run, teacher, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    said = "'n' : number must be at most 1 (for sk-very-secret)"
    teacher.behave = lambda body, number: refuse(said) if body.get("n", 1) > 1 else None
    audit(run, 0, run.config())
    with contextlib.closing(sqlite3.connect(run.ledger)) as db:
        assert db.execute("SELECT status, said FROM lessons").fetchall() == [
            (400, "'n' : number must be at most 1 (for (key))")
        ]
    teacher.behave = lambda body, number: None
    run.round(0).rollouts.replace([], run.round(0).rollouts.manifest.made_with, complete=False)
    capsys.readouterr()
    asked = teacher.requests
    audit(run, 0, run.config(("teacher.extra={user='me'}",)))
    assert "at most n" not in capsys.readouterr().err
    assert teacher.requests - asked == run.round(0).chunks.manifest.rows


def thinks(body, number):
    message = {"role": "assistant", "content": None, "reasoning_content": "Okay, the user"}
    choices = [{"message": message, "finish_reason": "length"}] * body["n"]
    usage = {"prompt_tokens": 20, "completion_tokens": 12 * body["n"]}
    return web.json_response({"model": "scripted", "choices": choices, "usage": usage})


def test_a_teacher_that_only_thinks_ends_the_stage_with_its_switch_and_is_no_evidence(run, teacher):
    teacher.chat_only, teacher.behave = True, thinks
    with pytest.raises(TeacherError, match=r"20 rollouts in a row.*enable_thinking = false"):
        audit(run, 0, run.config())
    rows = rows_of(run)
    assert {(row["status"], row["text"], row["finish_reason"]) for row in rows} == {
        ("failed", None, "thinking: length")
    }
    assert 20 <= len(rows) <= 20 + 4 * CONCURRENCY
    assert read_totals(run.ledger).completion_tokens == 12 * len(rows), "billed all the same"


def test_silence_counts_in_a_row_and_a_text_ends_the_row():
    silent, text = Rollout("failed", None, "thinking: length"), Rollout("empty", "", "stop")
    watch = SilenceWatch("Turn it off.")
    assert watch.saw([silent] * 19) is None
    assert watch.saw([Rollout("filtered", None, "SAFETY"), text, *[silent] * 19]) is None
    error = watch.saw([Rollout("failed", None, "tool_calls")])
    assert error is not None
    assert "tool_calls" in str(error)
    assert SilenceWatch("Turn it off.").saw([silent] * 20).hint == "Turn it off."


def same(body, number):
    choices = [{"text": "7", "finish_reason": "length"}] * body["n"]
    usage = {"prompt_tokens": 9, "completion_tokens": body["n"]}
    return web.json_response({"model": "scripted", "choices": choices, "usage": usage})


def test_identical_rollouts_are_noticed_within_ten_chunks_said_once_and_shown(run, teacher, capsys):
    teacher.behave = same
    audit(run, 0, run.config())
    assert capsys.readouterr().err.count("the rollouts of the last 10 chunks are identical") == 1
    assert read_status(run, run.config()).rounds[0].distinct_rollouts == 1.0


def test_rollouts_that_vary_are_counted_and_nothing_is_said(run, capsys):
    audit(run, 0, run.config())
    assert "identical" not in capsys.readouterr().err
    assert read_status(run, run.config()).rounds[0].distinct_rollouts == 4.0


def test_variety_is_judged_by_enough_texts_in_a_row_and_not_at_temperature_0(capsys):
    watch = VarietyWatch(1.0)
    for _ in range(14):
        watch.saw(["a", "a"])
    watch.saw(["a"])
    watch.saw([None, "", ""])
    assert capsys.readouterr().err == ""
    watch.saw(["a", "a"])
    assert "15 chunks are identical" in capsys.readouterr().err
    for _ in range(99):
        watch.saw(["a"] * 10)
    assert capsys.readouterr().err == ""
    interrupted, greedy = VarietyWatch(1.0), VarietyWatch(0.0)
    for number in range(99):
        interrupted.saw(["a"] * 9 + ["b" if number % 10 == 9 else "a"])
        greedy.saw(["a"] * 10)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("config", "text"),
    [({"bos_token": "<s>"}, "<s>"), ({"bos_token": {"content": "<s>"}}, "<s>"), ({"bos_token": None}, ""), ({}, ""),
     (None, "")],
)  # fmt: skip
def test_the_first_token_is_read_from_the_tokenizers_config(tmp_path, config, text):
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert bos_text(tmp_path) == text


def test_an_ask_knows_whether_its_prompt_holds_the_first_token(run):
    config = run.config()
    context = AuditContext(None, 0, config.teacher, stopping_rule(config), None, None, None, None, "<s>")
    held, bare = (Work("c", "t", Conversation.of("Q"), text, "", (0,), 9) for text in ("<s>Q\n", "Q\n"))
    assert (context.ask(held, (0,)).holds_bos, context.ask(bare, (0,)).holds_bos) == (True, False)


def test_system_prompt_instruction_and_extra_determine_the_rollouts(run):
    changes = ('teacher.system="S"', 'teacher.instruction="I"', "teacher.extra={reasoning_effort='low'}")
    made = made_with(run.config(changes), "rollouts")
    assert (made["teacher.system"], made["teacher.instruction"]) == ("S", "I")
    assert made["teacher.extra"] == {"reasoning_effort": "low"}
