"""`omniopd reset`: a round is taken back, and nothing that was paid for is lost unless it is asked to be."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from omniopd.stages.audit.stage import audit
from omniopd.store.batch_book import BatchRow
from omniopd.store.errors import BusyError, ConfigChangedError, InputError, TableError
from omniopd.store.ledger import Ledger, Reservation, Settlement
from omniopd.store.ledger_read import read_totals
from omniopd.store.ledger_repair import rebuild_ledger
from omniopd.store.reset import carry_out, plan_reset
from omniopd.store.table import Table
from omniopd.store.usage import Usage
from support.tables import newest
from support.written_run import write_tables


@pytest.fixture
def run(make_run):
    return write_tables(make_run())


def take_back(run, first, *, index=0, discard_paid=False):
    return carry_out(plan_reset(run, index, first, discard_paid=discard_paid))


def kept(run, table):
    (folder,) = (run.round(0).path / "kept").glob(f"*/{table.spec.name}")
    return Table(folder, table.spec)


def test_what_goes_is_shown_with_rows_and_what_they_cost(run):
    text = str(plan_reset(run, 0, "audit", discard_paid=False))
    assert "round=000/rollouts: 12 rows, set aside, paid for with 180 teacher tokens, $0.0120" in text
    assert "round=000/chunks: 4 rows, set aside" in text
    assert "scores: deleted" in text
    assert "train-round=000.jsonl: deleted" in text
    assert "trajectories" not in text
    assert "rollouts: 12 rows, deleted, paid" in str(plan_reset(run, 0, "audit", discard_paid=True))


def test_paid_rollouts_are_set_aside_with_what_they_rest_on_and_stay_spent(run):
    round_ = run.round(0)
    before, spent = round_.rollouts.read(), read_totals(run.ledger)
    take_back(run, "generate")
    assert not any(table.folder.exists() for table in round_.tables)
    assert not run.train_steps(0).exists()
    assert kept(run, round_.rollouts).read().equals(before)
    assert kept(run, round_.chunks).manifest.rows == 4
    assert kept(run, round_.trajectories).manifest.rows == 2
    assert read_totals(run.ledger) == spent


def test_a_reset_from_score_leaves_the_rollouts_where_they_are(run):
    round_ = run.round(0)
    take_back(run, "score")
    assert round_.rollouts.manifest.rows == 12
    assert not round_.shards.folder.exists()
    assert not (round_.path / "kept").exists()


def test_paid_rollouts_go_where_that_is_asked_for(run):
    take_back(run, "audit", discard_paid=True)
    assert not (run.round(0).path / "kept").exists()
    assert not run.round(0).rollouts.folder.exists()
    assert run.round(0).trajectories.manifest.rows == 2


def test_answers_that_a_crash_left_in_the_ledger_are_set_aside_too(run):
    row = run.round(0).rollouts.read().to_pylist()[0]
    new, old = row | {"rollout_index": 7}, row
    with contextlib.closing(Ledger(run.ledger)) as ledger:
        ledger.commit([Reservation("late", 0, "scripted", 5_000_000, 60, "teacher.price")], [])
        payload = json.dumps([new, old]).encode()
        ledger.commit([], [Settlement("late", "settled", Usage(30, 12, 15), 3_000_000, payload)])
    take_back(run, "audit")
    rows = kept(run, run.round(0).rollouts).read().to_pylist()
    assert len(rows) == 13
    assert new in rows
    with contextlib.closing(Ledger(run.ledger)) as ledger:
        assert ledger.outbox(0, 10) == []


def test_a_reset_that_is_killed_anywhere_loses_no_paid_row_and_goes_on(run, monkeypatch):
    round_ = run.round(0)
    before = {table.spec.name: table.read() for table in (round_.trajectories, round_.chunks, round_.rollouts)}
    rename = Path.rename
    for moves in range(20):
        count = iter(range(moves))

        def killed(path, target, count=count):
            if path.parent == round_.path and next(count, None) is None:
                raise KeyboardInterrupt
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", killed)
        try:
            take_back(run, "generate")
            break
        except KeyboardInterrupt:
            pass
        except InputError:
            break  # the one before had done all
        finally:
            monkeypatch.undo()
    assert 1 < moves < 19
    for name, rows in before.items():
        (path,) = round_.kept.glob(f"*/{name}")
        assert Table(path, getattr(round_, name).spec).read().equals(rows)
    assert not round_.trajectories.folder.exists()


def test_evaluations_of_the_policy_that_goes_go_too(run):
    for after in (0, 1, 2):
        (run.path / "eval" / f"after={after:03d}" / "sums").mkdir(parents=True)
    take_back(run, "train")
    assert [path.name for path in (run.path / "eval").iterdir()] == ["after=000"]


def test_a_round_that_a_later_one_rests_on_is_refused_with_the_way_out(run):
    shutil.copytree(run.round(0).path, run.round(1).path)
    with pytest.raises(InputError, match=r"Round 1 rests on .* `omniopd reset .* --round 1 --from generate`"):
        plan_reset(run, 0, "train", discard_paid=False)
    take_back(run, "generate", index=1)
    take_back(run, "train")


def test_rounds_and_stages_that_are_not_there_are_refused(run):
    with pytest.raises(InputError, match="has no round 3"):
        plan_reset(run, 3, "train", discard_paid=False)
    take_back(run, "train")
    with pytest.raises(InputError, match="has nothing from train on"):
        plan_reset(run, 0, "train", discard_paid=False)


def test_a_running_stage_is_not_taken_back(run):
    wanted = plan_reset(run, 0, "audit", discard_paid=False)
    with run.round(0).lock("score"), pytest.raises(BusyError, match="score"):
        carry_out(wanted)
    assert run.round(0).rollouts.manifest.rows == 12


def test_records_of_the_stages_go_so_that_status_says_nothing_of_them(run):
    round_ = run.round(0)
    for stage in ("generate", "audit"):
        with round_.lock(stage):
            pass
    take_back(run, "audit")
    assert round_.stage_runs("audit") == []
    assert len(round_.stage_runs("generate")) == 1


def test_a_deleted_or_damaged_table_can_be_taken_back(run):
    round_ = run.round(0)
    part = round_.rollouts.files()[0]
    part.unlink()
    assert "set aside, paid for with 180 teacher tokens, $0.0120 by the ledger" in str(
        plan_reset(run, 0, "audit", discard_paid=False)
    )
    newest(round_.chunks.folder).write_text("{")
    assert "chunks: unreadable, set aside" in str(plan_reset(run, 0, "audit", discard_paid=False))
    take_back(run, "audit")
    assert not round_.chunks.folder.exists()


def test_batches_at_the_provider_are_refused(run):
    reservation = Reservation("b1", 0, "scripted", 1, 1, "teacher.price")
    with contextlib.closing(Ledger(run.ledger)) as ledger:
        ledger.commit([reservation], [], batch=("key", 0, {"b1": BatchRow("b1", "c", (0,), 1, "completion")}))
        ledger.batches.begin("key", "")
    with pytest.raises(TableError, match=r"1 batches of round 0 .* --cancel all"):
        plan_reset(run, 0, "audit", discard_paid=False)


def test_a_lost_ledger_is_rebuilt_with_the_bills_of_what_was_set_aside(make_run, generated, teacher):
    run = generated(make_run(teacher={"base_url": teacher.base_url}))
    audit(run, 0, run.config())
    take_back(run, "audit")
    audit(run, 0, run.config())
    spent = read_totals(run.ledger)
    for path in run.path.glob("ledger.sqlite*"):
        path.unlink()
    rebuild_ledger(run)
    rebuilt = read_totals(run.ledger)
    assert (rebuilt.requests, rebuilt.charged_tokens) == (spent.requests, spent.charged_tokens)


def test_a_changed_config_names_the_reset_after_which_the_stage_begins_again(make_run, generated, teacher):
    run = generated(make_run(teacher={"base_url": teacher.base_url}))
    audit(run, 0, run.config())
    asked = teacher.requests
    changed = run.config(("select.chunks=2",))
    with pytest.raises(ConfigChangedError, match=r"`omniopd reset .*run --round 0 --from audit`"):
        audit(run, 0, changed)
    take_back(run, "audit")
    audit(run, 0, changed)
    assert teacher.requests > asked
    rollouts = run.round(0).rollouts.read(["cost_usd"]).num_rows
    assert rollouts == 4 * run.round(0).chunks.manifest.rows
    assert kept(run, run.round(0).rollouts).manifest.rows > rollouts
