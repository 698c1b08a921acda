"""`omniopd status`: what is done, missing, running and failed, what it cost, and what is left."""

import contextlib
import json
import os
import socket
import time

import pytest

from omniopd.stages.audit.forecast import Forecast, as_row
from omniopd.stages.generate.stage import generate
from omniopd.store.errors import BudgetReached, ConfigChangedError, TeacherError
from omniopd.store.journal import StageRun, expect, read_stage_run, recorded
from omniopd.store.ledger import Ledger
from omniopd.store.ledger_read import read_answered
from omniopd.view.status import Status, finished, read_status
from omniopd.view.status_text import duration, one_liner, render, show
from support.processes import finish
from support.tables import edit, newest
from support.written_run import add_evaluation


def text_of(status, width=100):
    from rich.console import Console

    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(render(status))
    return captured.get()


def test_the_states_of_the_stages_come_from_tables_metrics_and_records(written_run):
    (round_,) = read_status(written_run, written_run.config()).rounds
    generate, audit, score, train = round_.stages
    assert (generate.state, generate.done, generate.expected) == ("done", 2, 2)
    assert (audit.state, audit.done, audit.expected, audit.failed) == ("done", 12, 12, 4)
    assert (score.state, score.done, score.expected) == ("missing", 0, 2)
    # The line that a crash cut short is no step.
    assert (train.state, train.done, train.expected, train.rate_per_s) == ("partial", 2, None, 0.5)
    assert round_.outcomes == {"ok": 8, "failed": 4}
    assert round_.cut_off == 0.5
    assert round_.distinct_rollouts == 1.0


def test_spend_stands_against_the_budget_with_the_share_of_the_cache(written_run):
    spend = read_status(written_run, written_run.config()).spend
    assert (spend.usd, spend.tokens, spend.budget_tokens) == (pytest.approx(0.012), 180, 2000)
    assert (spend.requests, spend.prompt_tokens, spend.completion_tokens) == (4, 120, 60)
    assert spend.cache_share == pytest.approx(0.4)
    assert spend.prices == ["teacher.price"]


def test_the_prediction_stands_below_the_bill(written_run):
    assert read_status(written_run, written_run.config()).rounds[0].predicted is None
    forecast = Forecast("live", "completion", 4, 130, 50, 90, 0.01, 0.02, "teacher.price")
    with contextlib.closing(Ledger(written_run.ledger)) as ledger:
        ledger.note_forecast(0, as_row(forecast))
    status = read_status(written_run, written_run.config())
    assert status.rounds[0].predicted == forecast
    text = " ".join(text_of(status).split())
    assert (
        "predicted 4 requests: 130 prompt tokens (at best 50 of them cached) and at most 90 of rollouts,"
        " $0.0100 to $0.0200"
    ) in text


def test_a_person_reads_the_same_in_80_columns_without_colour(written_run):
    text = text_of(read_status(written_run, written_run.config()), width=80)
    assert all(len(line) <= 80 for line in text.splitlines())
    for part in ("done 12 (4 failed)", "$0.0120 by teacher.price", "180 teacher tokens of 2,000 (9%)",
                 "(40.0% from its cache)", "8 ok (66.7%), 4 failed (33.3%)", "0 of 1 rounds done"):  # fmt: skip
        assert part in " ".join(text.split()), part
    assert "\x1b" not in text


def record(run, stage, **fields):
    values = {"pid": os.getpid(), "host": socket.gethostname(), "started_at": time.time() - 10, **fields}
    path = run.round(0).path / f".{stage}.run.json"
    path.write_text(StageRun(**values).model_dump_json())
    return path


def test_a_stage_that_runs_has_a_rate_and_an_end_in_sight(written_run):
    record(written_run, "train", expected=10)
    status = read_status(written_run, written_run.config())
    train = status.rounds[0].stages[3]
    assert (train.state, train.expected, train.eta_s) == ("running", 10, 16.0)
    assert 9 < train.seconds < 60
    assert "round 0 train: 2/10 steps, 0.5/s, 100 tokens/s, 16 s left" in " ".join(text_of(status).split())
    assert one_liner(status).startswith("round 0 train running 2/10, 0.5/s, 100 tokens/s, 16 s left; $0.0120")
    # The score stage is to come and was never timed, so nobody knows when the run ends.
    assert status.eta_s is None


def test_tokens_a_second_are_those_of_the_tables_and_the_ledger(written_run):
    started = time.time() - 10
    for stage, table in (("generate", written_run.round(0).trajectories), ("audit", written_run.round(0).rollouts)):
        record(written_run, stage, started_at=started)
        edit(table.folder, {"complete": False})
    generate, audit = read_status(written_run, written_run.config()).rounds[0].stages[:2]
    assert (generate.state, audit.state) == ("running", "running")
    # 43 + 20 tokens of two responses; 4 requests of 30 + 15.
    assert generate.tokens_per_s == pytest.approx(generate.rate_per_s * 63 / 2)
    assert 0 < audit.tokens_per_s <= 4 * 45 / 9
    assert read_answered(written_run.ledger, 0, started)[0] == 4 * 45


def test_the_end_of_the_run_adds_what_the_stages_took_before(written_run):
    config = written_run.config(("run.rounds=2",))
    record(written_run, "train", expected=10)
    written_run.round(0).shards.finish()
    now = time.time()
    for stage, seconds in (("generate", 100), ("audit", 200), ("score", 5)):
        record(written_run, stage, started_at=now - 1000, ended_at=now - 1000 + seconds)
    assert read_status(written_run, config).eta_s is None  # no training was ever finished
    record(written_run, "train", expected=2, started_at=now - 1000, ended_at=now - 1000 + 50)
    written_run.round(0).policy.mkdir()
    record_path = written_run.round(1).path
    record_path.mkdir()
    run = StageRun(pid=os.getpid(), host=socket.gethostname(), started_at=now, expected=8)
    (record_path / ".generate.run.json").write_text(run.model_dump_json())
    status = read_status(written_run, config)
    assert status.rounds[1].stages[0].state == "running"
    assert status.eta_s is None  # no rate yet


def test_a_stage_that_failed_says_why_and_one_that_was_killed_is_only_partial(written_run):
    record(written_run, "score", ended_at=time.time(), error="The teacher\x1b[31m is gone. Try again.")
    status = read_status(written_run, written_run.config())
    assert status.rounds[0].stages[2].state == "failed"
    assert "round 0 score: The teacher␛[31m is gone. Try again." in " ".join(text_of(status).split())
    record(written_run, "score", pid=2**22 + 1)
    assert read_status(written_run, written_run.config()).rounds[0].stages[2].state == "partial"
    record(written_run, "score", pid=2**22 + 1, host="elsewhere")
    assert read_status(written_run, written_run.config()).rounds[0].stages[2].state == "running"


def test_a_damaged_table_is_a_state_of_its_stage_with_the_way_out_and_the_others_are_shown(written_run):
    round_ = written_run.round(0)
    round_.rollouts.files()[0].unlink()
    newest(round_.trajectories.folder).write_text("{")
    status = read_status(written_run, written_run.config())
    assert [stage.state for stage in status.rounds[0].stages] == ["damaged", "damaged", "missing", "partial"]
    text = " ".join(text_of(status, width=400).split())
    assert "is missing. Restore it from a copy, or do it again: omniopd reset" in text
    assert f"omniopd reset {written_run.path} --round 0 --from generate" in text
    assert "180 teacher tokens" in text
    assert "omniopd run" not in text


def test_a_round_is_measured_by_the_number_of_rollouts_that_it_was_audited_with(written_run):
    table = written_run.round(0).rollouts
    rows = table.read()
    table.replace([rows], {"teacher.rollouts": 3})
    audit = read_status(written_run, written_run.config(("teacher.rollouts=50",))).rounds[0].stages[1]
    assert (audit.state, audit.expected) == ("done", 12)
    table.replace([rows], {"teacher.rollouts": "adaptive", "teacher.max_rollouts": 5})
    audit = read_status(written_run, written_run.config(("score.weights=constant",))).rounds[0].stages[1]
    assert audit.expected == 20


def test_a_stage_records_how_it_ended(make_run):
    run = make_run(name="journal")
    round_ = run.round(0)
    with round_.lock("audit"):
        round_.expect("audit", 7)
        (stage_run,) = round_.stage_runs("audit")
        assert (stage_run.state, stage_run.expected, stage_run.pid) == ("running", 7, os.getpid())
    assert round_.stage_runs("audit")[0].state == "ended"
    with pytest.raises(TeacherError), round_.lock("audit"):
        raise TeacherError("It is gone.", "Wait.")
    (stage_run,) = round_.stage_runs("audit")
    assert (stage_run.state, stage_run.error, stage_run.expected) == ("failed", "It is gone. Wait.", 7)
    with pytest.raises(BudgetReached), round_.lock("audit"):
        raise BudgetReached("Enough.", "Pay.")
    assert round_.stage_runs("audit")[0].state == "ended"
    with pytest.raises(RuntimeError), round_.lock("audit"):
        raise RuntimeError("key=secret")
    assert round_.stage_runs("audit")[0].error == "RuntimeError"


def test_an_unreadable_record_is_no_record(tmp_path):
    path = tmp_path / "x"
    path.write_text('{"pid": ')
    assert read_stage_run(path) is None
    with recorded(path):
        expect(path, 3)
    assert read_stage_run(path).expected == 3


def test_the_seconds_of_a_stage_are_those_of_the_run_that_did_the_work(make_run):
    run = make_run()
    generate(run, 0, run.config())
    (first,) = run.round(0).stage_runs("generate")
    generate(run, 0, run.config())
    assert run.round(0).stage_runs("generate") == [first], "there was nothing to do"
    generate(run, 0, run.config(("generate.part_rows=3",)))
    assert run.round(0).stage_runs("generate") == [first]
    with pytest.raises(ConfigChangedError):
        generate(run, 0, run.config(("generate.temperature=0.5",)))
    (failed,) = run.round(0).stage_runs("generate")
    assert failed.state == "failed"
    generate(run, 0, run.config())
    (again,) = run.round(0).stage_runs("generate")
    assert again.state == "ended"


def test_the_json_has_the_fields_that_programs_rely_on(written_run):
    status = json.loads(read_status(written_run, written_run.config()).model_dump_json())
    assert status["version"] == 1
    assert set(status) == {
        "version", "run", "time", "rounds_planned", "rounds", "spend", "outcomes", "eta_s", "policy",
        "evaluations", "next",
    }  # fmt: skip
    (round_,) = status["rounds"]
    assert set(round_) == {
        "round",
        "stages",
        "spend",
        "outcomes",
        "cut_off",
        "repetition",
        "distinct_rollouts",
        "accepted",
        "objective",
        "predicted",
    }
    assert [stage["stage"] for stage in round_["stages"]] == ["generate", "audit", "score", "train"]
    assert set(round_["stages"][0]) == {
        "stage", "state", "unit", "done", "expected", "failed", "rate_per_s", "tokens_per_s", "eta_s", "seconds",
        "error", "waiting",
    }  # fmt: skip
    assert set(status["spend"]) == {
        "usd", "budget_usd", "reserved_usd", "tokens", "budget_tokens", "reserved_tokens", "prompt_tokens",
        "cached_tokens", "cache_write_tokens", "completion_tokens", "cache_share", "requests", "unknown_requests",
        "check_requests", "prices",
    }  # fmt: skip
    assert Status.model_validate(status) == read_status(written_run, written_run.config()).model_copy(
        update={"time": Status.model_validate(status).time}
    )


def test_watching_without_a_terminal_prints_plain_lines_until_all_is_done(written_run, capsys):
    written_run.round(0).shards.finish()
    written_run.round(0).policy.mkdir()
    show(written_run, written_run.config(), watch=True)
    out = capsys.readouterr().out
    assert "all rounds are done; $0.0120, 180 teacher tokens" in out
    assert len(out.splitlines()) == 1
    assert finished(read_status(written_run, written_run.config()))
    assert not finished(read_status(written_run, written_run.config(("run.rounds=2",))))


def test_a_run_that_has_not_begun_says_what_to_do(make_run):
    run = make_run(name="new")
    assert "omniopd run" in text_of(read_status(run, run.config()))


def test_it_names_policy_accuracy_and_what_comes_next(written_run):
    add_evaluation(written_run, 0, [True, False, False, False]).finish()
    written_run.round(0).shards.finish()
    status = read_status(written_run, written_run.config())
    assert (status.policy, status.next) == (None, f"omniopd run {written_run.path}")
    written_run.round(0).policy.mkdir()
    status = read_status(written_run, written_run.config())
    assert status.policy == str(written_run.round(0).policy)
    assert status.next == f"omniopd eval {written_run.path} --benchmark aime24"
    add_evaluation(written_run, 1, [True, True, True, False]).finish()
    add_evaluation(written_run, 2, [True])  # still being graded
    status = read_status(written_run, written_run.config())
    assert [(one.benchmark, one.rounds, one.pass_at_1, one.answers) for one in status.evaluations] == [
        ("aime24", 0, 0.25, 4), ("aime24", 1, 0.75, 4)
    ]  # fmt: skip
    text = text_of(status, width=200)
    assert "aime24: Pass@1 25.0 [" in text
    assert "] before, 75.0 [" in text
    assert status.next == f"omniopd export {written_run.path} {written_run.path}-after-1"


def test_a_task_of_ones_own_is_not_to_be_measured_on_somebody_elses_benchmark(written_run):
    written_run.round(0).shards.finish()
    written_run.round(0).policy.mkdir()

    def next_command(*overrides):
        return read_status(written_run, written_run.config(overrides)).next

    assert next_command() == f"omniopd export {written_run.path} {written_run.path}-after-1"
    assert next_command("eval.benchmark=held-out.jsonl") == f"omniopd eval {written_run.path}"
    maths = "data.prompts=open-r1/DAPO-Math-17k-Processed"
    assert next_command(maths) == f"omniopd eval {written_run.path} --benchmark math500"


def test_lines_of_a_file_are_as_long_as_what_they_say(written_run, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    for words in (("status",), ("inspect", "chunks"), ("inspect", "trajectories")):
        command, *table = words
        lines = finish(command, written_run.path, *table).stdout.splitlines()
        assert max(map(len, lines)) > 80
        assert len(lines) == len(finish(command, written_run.path, *table, env={"COLUMNS": "500"}).stdout.splitlines())


def test_a_command_to_be_copied_is_on_one_line_however_narrow_the_terminal(make_run, monkeypatch, capsys):
    run = make_run(name="a run with a long name " * 4)
    monkeypatch.setenv("COLUMNS", "60")
    show(run, run.config(), watch=False)
    assert f"next       omniopd run '{run.path}'" in capsys.readouterr().out.splitlines()


def test_durations_are_as_people_say_them():
    assert [duration(s) for s in (0.4, 59.4, 60, 200, 7500)] == ["0 s", "59 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]
