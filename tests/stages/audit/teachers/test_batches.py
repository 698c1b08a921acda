"""One suite for the batch APIs of all dialects, against servers that enforce the vendors' rules."""

import asyncio
import json
from collections import Counter

import pytest

from omniopd.stages.audit.batches import anthropic, api, overview
from omniopd.stages.audit.stage import audit
from omniopd.stages.audit.teachers import openai
from omniopd.store.batch_book import BatchBook
from omniopd.store.errors import BudgetReached, ConfigError, InputError, TeacherError
from omniopd.store.ledger import Ledger
from omniopd.store.ledger_read import read_batches, read_totals
from omniopd.store.sections import TeacherConfig
from support import batch_vendors, vendors

CASES = {
    "openai": lambda: vendors.OpenAI("openai"),
    "anthropic": lambda: vendors.Anthropic(prefills=True),
    "gemini": lambda: vendors.Gemini(prefills=True),
}
N = 3
PRICE = "teacher.price={input=1.0, output=5.0}"


class Killed(Exception):
    """In place of SIGKILL: nothing of the stage's own runs any more but what `with` does."""


@pytest.fixture(params=CASES)
def server(request, monkeypatch):
    for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.setenv(key, vendors.KEY)
    monkeypatch.setitem(openai.HOSTS, "127.0.0.1", openai.HOSTS["api.openai.com"])
    server = batch_vendors.BatchServer(CASES[request.param]())
    yield server
    server.stop()


@pytest.fixture
def run(make_run, server, generated):
    vendor = server.vendor
    teacher = {"kind": vendor.kind, "model": vendor.model, "base_url": server.base_url, "rollouts": N, "mode": "batch",
               "poll_s": 0.01}  # fmt: skip
    return generated(make_run(questions=4, teacher=teacher))


def rows_of(run):
    return run.round(0).rollouts.read().to_pylist()


def assert_every_rollout_is_there_once(run):
    chunks = run.round(0).chunks.read(["chunk_id"])["chunk_id"].to_pylist()
    keys = [(row["chunk_id"], row["rollout_index"]) for row in rows_of(run)]
    assert len(keys) == len(set(keys))
    assert set(keys) == {(chunk, i) for chunk in chunks for i in range(N)}
    assert read_totals(run.ledger).reserved_tokens == 0


def assert_one_batch_has_brought_all(run, server):
    assert_every_rollout_is_there_once(run)
    assert len(server.made) == 1
    assert read_totals(run.ledger).unknown == 0


def die_when(monkeypatch, state):
    """The process dies right before it writes down that a batch is so far."""
    name = "begin" if state == "creating" else "mark"
    real = getattr(BatchBook, name)

    def dying(book, key, now, remote_id=None):
        if now == state or state == "creating":
            raise Killed
        real(book, key, now, remote_id)

    monkeypatch.setattr(BatchBook, name, dying)
    return lambda: monkeypatch.setattr(BatchBook, name, real)


def die(run, *overrides):
    with pytest.raises(Killed):
        audit(run, 0, run.config(overrides))


def test_one_batch_brings_all_rollouts_at_half_the_price_and_the_key_is_written_nowhere(run, server, capsys):
    config = run.config((PRICE,))
    run.record(config)
    audit(run, 0, config)
    assert_every_rollout_is_there_once(run)
    assert len(server.made) == 1
    assert {row["status"] for row in rows_of(run)} == {"ok"}
    totals = read_totals(run.ledger)
    most = 1 if server.vendor.kind == "anthropic" else N
    assert totals.requests == len(server.made[0].rows) == run.round(0).chunks.manifest.rows * N // most
    assert sum(row["prompt_tokens"] for row in rows_of(run)) == totals.prompt_tokens
    half = (totals.prompt_tokens * 1000 + totals.completion_tokens * 5000) / 2
    assert totals.charged_nusd == pytest.approx(half, abs=totals.requests)
    assert "$0.5 in and $2.5 out per million tokens (teacher.price, batch at half)" in capsys.readouterr().err
    for path in run.path.rglob("*"):
        assert not path.is_file() or vendors.KEY.encode() not in path.read_bytes(), path
    audit(run, 0, config)
    assert len(server.made) == 1


def test_a_batch_of_whole_answers_asks_plain_questions_once(run, make_run, server, generated):
    teacher = run.config().teacher.model_dump(exclude_unset=True)
    sft = generated(make_run(name="sft", questions=4, teacher=teacher, train={"objective": "sft"}))
    audit(sft, 0, sft.config())
    assert_every_rollout_is_there_once(sft)
    assert sft.round(0).chunks.manifest.rows == 4
    questions = {row["question"] for row in sft.round(0).trajectories.read().to_pylist()}
    assert {(seen.question, seen.prefix) for seen in server.vendor.seen} == {(question, "") for question in questions}
    audit(sft, 0, sft.config())
    assert len(server.made) == 1


def test_a_crash_right_after_the_creation_finds_the_same_batch_again(run, server, monkeypatch):
    mend = die_when(monkeypatch, "created")
    die(run)
    assert len(server.made) == 1
    mend()
    audit(run, 0, run.config())
    assert_one_batch_has_brought_all(run, server)


def test_a_crash_while_it_waits_goes_on_waiting_for_the_same_batch(run, server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("omniopd.stages.audit.batches.flow.BatchFlow.collect", dying_collect())
        die(run)
    audit(run, 0, run.config())
    assert_one_batch_has_brought_all(run, server)


def dying_collect():
    calls = []

    async def collect(flow):
        calls.append(1)
        if len(calls) > 1:  # the first call looks for batches of an earlier start
            raise Killed

    return collect


def test_a_crash_before_the_creation_charges_nothing(run, server, monkeypatch):
    mend = die_when(monkeypatch, "creating")
    die(run)
    mend()
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    totals = read_totals(run.ledger)
    assert len(server.made) == 1
    assert totals.unknown == 0
    assert totals.requests == 2 * len(server.made[0].rows), "those that were only intended are released"


def test_a_creation_of_which_nobody_knows_is_looked_for_again_before_anything_is_bought_twice(run, server, capsys):
    """The provider's list is late: the batch is there, and is found by a later start."""
    server.lost = {"create", "list"}
    with pytest.raises(TeacherError, match=r"did not answer when batch .* was created, and does not list it"):
        audit(run, 0, run.config((PRICE,)))
    kept = read_totals(run.ledger)
    assert (kept.charged_tokens, kept.unknown) == (0, 0)
    assert kept.reserved_tokens > 0, "it counts against the budget meanwhile"
    server.lost = {"list"}
    with pytest.raises(TeacherError, match="does not list it"):
        audit(run, 0, run.config((PRICE,)))
    server.lost = set()
    audit(run, 0, run.config((PRICE,)))
    assert_one_batch_has_brought_all(run, server)


def test_a_batch_that_is_not_listed_after_an_hour_is_charged_in_full_and_asked_again(run, server, monkeypatch, capsys):
    server.lost = {"before create"}
    with pytest.raises(TeacherError, match="does not list it"):
        audit(run, 0, run.config((PRICE,)))
    server.lost = set()
    monkeypatch.setattr("omniopd.stages.audit.batches.flow._LISTED_WITHIN_S", 0.0)
    audit(run, 0, run.config((PRICE,)))
    assert "is not listed after an hour: charged in full" in capsys.readouterr().err
    assert_every_rollout_is_there_once(run)
    assert len(server.made) == 1
    totals = read_totals(run.ledger)
    assert totals.unknown == totals.requests // 2 > 0


def test_a_person_may_say_that_an_unconfirmed_batch_is_not_there(run, server):
    server.lost = {"before create"}
    with pytest.raises(TeacherError, match="does not list it"):
        audit(run, 0, run.config((PRICE,)))
    (batch,) = read_batches(run.ledger)
    assert (batch.state, batch.remote_id, batch.waiting) == ("creating", None, batch.requests)
    assert "charged in full and closed" in overview.cancel(run, run.config((PRICE,)), batch.key)
    assert read_totals(run.ledger).unknown == batch.requests
    server.lost = set()
    audit(run, 0, run.config((PRICE,)))
    assert_every_rollout_is_there_once(run)
    with pytest.raises(InputError, match="has no open batch"):
        overview.cancel(run, run.config(), "all")


@pytest.mark.parametrize("ahead_s", [-7200.0, 7200.0])
def test_a_vendor_whose_clock_is_hours_off_is_understood(run, server, ahead_s):
    server.clock_s = ahead_s
    server.lost = {"create"}
    audit(run, 0, run.config())
    assert_one_batch_has_brought_all(run, server)


@pytest.mark.parametrize("status", [500, 503, 529, 429])
def test_a_creation_that_a_busy_vendor_refuses_is_tried_again_and_costs_nothing(run, server, monkeypatch, status):
    monkeypatch.setattr("omniopd.stages.audit.batches.flow.pause_s", lambda attempt, asked: 0.0)
    server.busy = [status, status]
    audit(run, 0, run.config())
    assert_one_batch_has_brought_all(run, server)


def test_a_vendor_that_stays_busy_ends_the_stage_and_the_reservation_is_released(run, server, monkeypatch):
    monkeypatch.setattr("omniopd.stages.audit.batches.flow.pause_s", lambda attempt, asked: 0.0)
    server.busy = [529] * 9
    with pytest.raises(TeacherError, match=r"does not take a batch \(529: "):
        audit(run, 0, run.config(("teacher.max_attempts=3",)))
    assert len(server.busy) == 6
    totals = read_totals(run.ledger)
    assert (totals.charged_tokens, totals.reserved_tokens, totals.unknown) == (0, 0, 0)


def test_a_gateway_that_saw_no_answer_to_a_creation_is_no_refusal(run, server):
    server.busy = [504]
    with pytest.raises(TeacherError, match="does not list it"):
        audit(run, 0, run.config())
    assert read_totals(run.ledger).reserved_tokens > 0


def test_a_creation_whose_answer_was_lost_is_found_at_once(run, server):
    server.lost = {"create"}
    audit(run, 0, run.config())
    assert_one_batch_has_brought_all(run, server)


def test_a_crash_half_way_through_the_results_neither_loses_nor_doubles_a_row(run, server, monkeypatch):
    monkeypatch.setattr("omniopd.stages.audit.batches.flow._SETTLED_TOGETHER", 4)
    real, settled = Ledger.commit, []

    def dying(ledger, reservations, settlements, batch=None):
        settled.extend(settlements)
        if len(settled) > 9:
            raise Killed
        return real(ledger, reservations, settlements, batch)

    monkeypatch.setattr(Ledger, "commit", dying)
    die(run)
    monkeypatch.setattr(Ledger, "commit", real)
    audit(run, 0, run.config())
    assert_one_batch_has_brought_all(run, server)


def test_results_that_come_twice_and_out_of_order_are_taken_once(run, server):
    server.repeats = True
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    totals = read_totals(run.ledger)
    assert totals.requests == len(server.made[0].rows)


@pytest.mark.parametrize("fate", ["expired", "broken"])
def test_what_expired_or_broke_is_asked_again_and_is_typed_in_the_end(run, server, fate):
    first = lambda number: fate if number < 3 else "ok"  # noqa: E731
    server.fate = first
    audit(run, 0, run.config(("teacher.max_attempts=2",)))
    assert_every_rollout_is_there_once(run)
    assert len(server.made) == 2
    assert len(server.made[1].rows) == 3, "only those, once more"
    assert {row["status"] for row in rows_of(run)} == {"ok"}
    assert {row["attempts"] for row in rows_of(run)} == {1, 2}


def test_rows_that_never_work_are_failed_rows_that_say_why_and_cost_nothing(run, server):
    server.fate = lambda number: "broken"
    audit(run, 0, run.config(("teacher.max_attempts=2", PRICE)))
    assert_every_rollout_is_there_once(run)
    assert {row["status"] for row in rows_of(run)} == {"failed"}
    assert {row["finish_reason"] for row in rows_of(run)} == {"500: oops"}
    assert len(server.made) == 2
    assert read_totals(run.ledger).charged_nusd == 0


def test_a_row_without_a_result_is_charged_in_full(run, server):
    server.fate = lambda number: "dropped" if number == 0 else "ok"
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert read_totals(run.ledger).unknown == 1


def test_results_that_are_cut_off_or_garbled_keep_what_can_be_read_and_are_read_again(run, server):
    server.garbled = True
    with pytest.raises(TeacherError, match=r"cut off or garbled: \d+ of \d+ answers can be read, and are kept"):
        audit(run, 0, run.config())
    kept = rows_of(run)
    assert 0 < len(kept) < run.round(0).chunks.manifest.rows * N
    assert read_totals(run.ledger).unknown == 0
    server.garbled = False
    audit(run, 0, run.config())
    assert_one_batch_has_brought_all(run, server)


def test_results_that_stay_garbled_are_charged_in_full_and_asked_again(run, server, monkeypatch):
    real = batch_vendors.BatchServer._create

    def create(server, key, rows, ids):
        server.garbled = not server.made  # the first batch's results stay as they are
        return real(server, key, rows, ids)

    monkeypatch.setattr(batch_vendors.BatchServer, "_create", create)
    with pytest.raises(TeacherError, match="cut off or garbled"):
        audit(run, 0, run.config())
    missing = run.round(0).chunks.manifest.rows * N - len(rows_of(run))
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert len(server.made) == 2
    assert read_totals(run.ledger).unknown == len(server.made[1].rows)
    assert missing > 0


def test_refusals_and_empty_answers_are_typed_rows(run, server):
    server.vendor.mode = "empty"
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert {row["status"] for row in rows_of(run)} == {"empty"}


def test_a_request_that_breaks_the_rules_fails_once_and_for_good(run, server, monkeypatch):

    def strict(path, headers, body):
        raise vendors.Refusal(400, "prompt is too long")

    monkeypatch.setattr(server.vendor, "answer", strict)
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert {(row["status"], row["finish_reason"]) for row in rows_of(run)} == {("failed", "400: prompt is too long")}
    assert len(server.made) == 1


def test_a_batch_that_was_cancelled_is_not_sent_again_by_itself(run, server):
    server.ends_as = "cancelled"
    server.fate = lambda number: "expired" if number < 2 else "ok"
    with pytest.raises(TeacherError, match="was cancelled; what was done before is kept"):
        audit(run, 0, run.config())
    assert rows_of(run)
    server.ends_as = "ended"
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert len(server.made) == 2


def test_a_batch_that_is_refused_as_a_whole_costs_nothing_and_is_one_line(run, server):
    if server.vendor.kind == "anthropic":
        pytest.skip("refuses at the creation")
    server.ends_as = "failed"
    with pytest.raises(TeacherError, match=r"refused batch .*no such model"):
        audit(run, 0, run.config())
    totals = read_totals(run.ledger)
    assert (totals.charged_tokens, totals.reserved_tokens) == (0, 0)


def test_a_batch_that_only_succeeded_in_part_ends(run, server):
    if server.vendor.kind != "gemini":
        pytest.skip("a state of Gemini's")
    server.ends_as = "partially_succeeded"
    server.fate = lambda number: "broken" if number < 3 else "ok"
    audit(run, 0, run.config(("teacher.max_attempts=2",)))
    assert_every_rollout_is_there_once(run)
    assert len(server.made) == 2


def test_batches_are_listed_and_cancelled(run, server, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("omniopd.stages.audit.batches.flow.BatchFlow.collect", dying_collect())
        die(run)
    (batch,) = read_batches(run.ledger)
    remote = "batches/batch0" if server.vendor.kind == "gemini" else "batch0"
    assert (batch.state, batch.remote_id, batch.waiting) == ("created", remote, batch.requests)
    assert f"{batch.key}  {remote} " in overview.describe([batch])
    server.fate = lambda number: "expired" if number < 2 else "ok"
    assert "1 cancelled" in overview.cancel(run, run.config(), remote)
    with pytest.raises(TeacherError, match="was cancelled; what was done before is kept"):
        audit(run, 0, run.config())
    (batch,) = read_batches(run.ledger)
    assert (batch.state, batch.waiting, batch.answered) == ("closed", 0, batch.requests - 2)
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    assert overview.describe([]) == "no batches"


def test_the_tail_of_a_budget_is_a_few_batches(make_run, run, server, generated):
    """Answers cost far less than their worst case, so that each batch leaves something for another."""
    many = generated(make_run("many", questions=24, teacher=run.config().teacher.model_dump(exclude_unset=True)))
    budget = {"openai": 2500, "anthropic": 3000, "gemini": 1500}[server.vendor.kind]
    with pytest.raises(BudgetReached, match="chunks of the lowest entropy"):
        audit(many, 0, many.config((f"teacher.budget_tokens={budget}",)))
    sizes = [len(made.rows) for made in server.made]
    assert 1 < len(sizes) <= 6
    assert sizes[-1] >= max(sizes) / 4
    assert read_totals(many.ledger).charged_tokens <= budget


def test_the_budget_holds_and_the_rest_waits_for_a_higher_one(run, server):
    budget = {"openai": 700, "anthropic": 1200, "gemini": 450}[server.vendor.kind]  # a few chunks' worst case
    with pytest.raises(BudgetReached):
        audit(run, 0, run.config((f"teacher.budget_tokens={budget}",)))
    totals = read_totals(run.ledger)
    assert 0 < totals.charged_tokens <= budget
    assert totals.reserved_tokens == 0
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)


def test_a_live_audit_fetches_the_open_batch_first_and_asks_for_nothing_twice(run, server, monkeypatch):
    mend = die_when(monkeypatch, "created")
    die(run)
    mend()
    asked = len(server.made[0].rows)
    audit(run, 0, run.config(("teacher.mode=live",)))
    assert_every_rollout_is_there_once(run)
    assert len(server.vendor.seen) == asked
    assert read_totals(run.ledger).unknown == 0


def test_batches_are_filled_to_the_providers_limits(run, server, monkeypatch):
    for module in (anthropic.AnthropicBatches, *other_batches()):
        monkeypatch.setattr(module, "most_rows", 5)
    server.most_rows = 5
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    sizes = Counter(len(made.rows) for made in server.made)
    assert max(sizes) == 5
    assert len(server.made) > 2


def test_batches_are_filled_to_the_providers_bytes(run, server, monkeypatch):
    for module in (anthropic.AnthropicBatches, *other_batches()):
        monkeypatch.setattr(module, "most_bytes", 1500)
    audit(run, 0, run.config())
    assert_every_rollout_is_there_once(run)
    sizes = [sum(len(json.dumps(row, separators=(",", ":"))) + 1 for row in made.rows) for made in server.made]
    assert len(sizes) > 2
    assert max(sizes) <= 1500
    largest_row = max(len(json.dumps(row)) for made in server.made for row in made.rows)
    assert min(sizes[:-1]) > 1500 - 2 * largest_row, "a batch ends where the next row would not fit"


def other_batches():
    from omniopd.stages.audit.batches import gemini
    from omniopd.stages.audit.batches import openai as openai_batches

    return gemini.GeminiBatches, openai_batches.OpenAIBatches


def test_adaptive_rollouts_come_in_waves(run, server):
    audit(run, 0, run.config(("teacher.rollouts=adaptive", "teacher.max_rollouts=8", "teacher.precision=0.3")))
    assert len(server.made) > 1
    found = Counter(row["chunk_id"] for row in rows_of(run))
    assert set(found) == set(run.round(0).chunks.read(["chunk_id"])["chunk_id"].to_pylist())
    assert all(4 <= count <= 8 for count in found.values())


def test_a_server_without_batches_and_a_kind_without_them_are_one_line(make_run, teacher, generated):
    run = generated(make_run(questions=2, teacher={"base_url": teacher.base_url, "mode": "batch"}))
    with pytest.raises(TeacherError, match="does not take a batch"):
        audit(run, 0, run.config())
    totals = read_totals(run.ledger)
    assert (totals.charged_tokens, totals.reserved_tokens) == (0, 0)

    async def open_it():
        async with api.open_batches(TeacherConfig(kind="mine"), None, None):
            pass

    with pytest.raises(ConfigError, match="'mine' has no batch API"):
        asyncio.run(open_it())


def test_a_batch_of_answers_without_a_usable_bill_is_charged_its_worst_case_and_not_bought_again(run, server):
    real = server.vendor.answer

    def answer(path, headers, body):
        out = real(path, headers, body)
        key = "usageMetadata" if "usageMetadata" in out else "usage"
        return out | {key: {"total_tokens": 9}}

    server.vendor.answer = answer
    server.vendor.text = "half a character: \ud83d, and on"
    audit(run, 0, run.config((PRICE,)))
    assert_every_rollout_is_there_once(run)
    assert len(server.made) == 1
    assert {row["text"] for row in rows_of(run)} == {"half a character: \ufffd, and on"}
    assert {row["prompt_tokens"] for row in rows_of(run)} == {None}
    totals = read_totals(run.ledger)
    assert totals.unknown == totals.requests
    assert totals.charged_tokens > 256 * totals.requests
    assert totals.charged_nusd > 0


def test_rows_that_are_refused_for_their_form_are_asked_again_in_the_next_batch_in_another(run, server, capsys):
    answer = server.vendor.answer

    def strict(path, headers, body):
        vendors.require("temperature" not in str(body), "`temperature` is deprecated for this model.")
        return answer(path, headers, body)

    server.vendor.answer = strict
    audit(run, 0, run.config(("teacher.temperature=0.5",)))
    assert_every_rollout_is_there_once(run)
    assert {row["status"] for row in rows_of(run)} == {"ok"}
    assert len(server.made) == 2
    assert capsys.readouterr().err.count("does not take temperature, which is left out") == 1
    totals = read_totals(run.ledger)
    billed = totals.prompt_tokens + totals.completion_tokens
    assert (totals.unknown, totals.charged_tokens) == (0, billed), "a refused row is not paid for"
    assert billed == sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows_of(run))


def test_a_batch_whose_answers_are_only_thinking_ends_the_stage(run, server):
    server.vendor.text = "<think>hm"
    with pytest.raises(TeacherError, match=r"thinks and does not answer: 20 rollouts .* \(thinking: "):
        audit(run, 0, run.config())
    assert {row["status"] for row in rows_of(run)} == {"failed"}
    assert read_totals(run.ledger).reserved_tokens == 0
