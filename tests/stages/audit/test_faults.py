"""A server with every fault at once, and a process that is killed at random: every chunk is accounted for, the budget
holds, and no answer that was paid for is lost or paid for again."""

import asyncio
import collections
import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from aiohttp import web

from omniopd.stages.generate.stage import generate
from omniopd.store.ledger import read_totals

KILLS = 3
FAULTY = 0.3
BUDGET_TOKENS = 3_000_000
TIMEOUT_S = 1.0


async def stall(request):
    await asyncio.sleep(1.5 * TIMEOUT_S)
    return web.json_response({})


async def half_a_body(request):
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [{"text": "ha')
    request.transport.close()
    return response


async def only_headers(request):
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    request.transport.close()
    return response


def faults(teacher):
    """What may happen to a request; each is as likely as the others."""

    def short(body):
        return web.json_response(teacher.answer(body | {"n": 1}))

    def changed(body, **changes):
        return web.json_response(teacher.answer(body) | changes)

    return {
        "429": lambda body: web.json_response({"error": "slow down"}, status=429),
        "429, later": lambda body: web.json_response({}, status=429, headers={"Retry-After": "0.02"}),
        "500": lambda body: web.json_response({"error": "oops"}, status=500),
        "529": lambda body: web.json_response({"error": {"type": "overloaded_error"}}, status=529),
        "hang up": lambda body: "hang up",
        "hang up after the headers": lambda body: only_headers,
        "half a body": lambda body: half_a_body,
        "no JSON": lambda body: web.Response(text="<html>", content_type="application/json"),
        "other JSON": lambda body: web.json_response({"choices": {"0": "text"}}),
        "invalid UTF-8": lambda body: web.Response(body=b'{"choices": "\xff\xfe"}', content_type="application/json"),
        "too large": lambda body: web.Response(body=b" " * 10_000_000, content_type="application/json"),
        "short n": short,
        "other model": lambda body: changed(body, model="other"),
        "the same id": lambda body: changed(body, id="same"),
        "stall": lambda body: stall,
    }


@pytest.mark.timeout(600)
def test_nothing_is_lost_or_paid_twice_under_all_faults_and_random_kills(make_run, teacher):
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
    run = make_run(questions=240, generate={"batch_size": 240, "part_rows": 240}, teacher=settings)
    generate(run, 0, run.config())
    command = [sys.executable, "-m", "omniopd", "audit", str(run.path)]
    for _ in range(KILLS):
        until = teacher.requests + chance.randrange(40, 160)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while teacher.requests < until:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr

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
