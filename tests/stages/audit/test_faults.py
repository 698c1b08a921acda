"""A server with every fault at once, and a process that is killed at random: every chunk is accounted for, the budget
holds, and no answer that was paid for is lost or paid for again."""

import collections
import contextlib
import random
import signal
import sqlite3
import time

import pytest

from omniopd.store.ledger_read import read_totals
from support.faults import TIMEOUT_S, faults
from support.processes import Command, finish

FAULTY = 0.4
BUDGET_TOKENS = 3_000_000


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("questions", "kills"), [(48, 1), pytest.param(240, 3, marks=pytest.mark.slow)])
def test_nothing_is_lost_or_paid_twice_under_all_faults_and_random_kills(
    make_run, teacher, generated, questions, kills
):
    chance = random.Random(3)
    kinds = faults(teacher)
    happened = collections.Counter()

    def behave(body, number):
        if chance.random() >= FAULTY:
            return None
        name = chance.choice(list(kinds))
        happened[name] += 1
        return kinds[name](body)

    teacher.behave = behave
    settings = {"base_url": teacher.base_url, "max_concurrency": 32, "max_attempts": 12, "timeout_s": TIMEOUT_S,
                "budget_tokens": BUDGET_TOKENS}  # fmt: skip
    run = make_run(questions=questions, generate={"batch_size": 240, "part_rows": 240}, teacher=settings)
    generated(run)
    for _ in range(kills):
        until = teacher.requests + chance.randrange(questions // 6, 2 * questions // 3)
        process = Command("audit", run.path, "--no-check")
        deadline = time.monotonic() + 120
        while teacher.requests < until:
            assert process.running
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    finish("audit", run.path, "--no-check")

    chunks = run.round(0).chunks.read(["chunk_id"])["chunk_id"].to_pylist()
    rows = run.round(0).rollouts.read().to_pylist()
    keys = [(row["chunk_id"], row["rollout_index"]) for row in rows]
    assert len(keys) == len(set(keys))
    assert set(keys) == {(chunk, i) for chunk in chunks for i in range(4)}
    assert {row["status"] for row in rows} == {"ok"}
    assert "other" in {row["teacher"] for row in rows}
    totals = read_totals(run.ledger)
    assert totals.charged_tokens <= BUDGET_TOKENS
    assert totals.reserved_tokens == 0
    with contextlib.closing(sqlite3.connect(run.ledger)) as db:
        paid = {name for (name,) in db.execute("SELECT request_id FROM requests WHERE state = 'settled'")}
        assert db.execute("SELECT count(*) FROM outbox").fetchone() == (0,)
    assert paid == {row["request_id"] for row in rows}, "each paid answer is in the table, and nothing else is"
    assert set(happened) == set(kinds)
