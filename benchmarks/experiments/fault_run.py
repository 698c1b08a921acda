"""Audit tens of thousands of chunks against a server with every fault at once, in a process that is killed at random.

    python benchmarks/experiments/fault_run.py FOLDER [--requests 100000] [--kills 50]

Not a part of `make bench`: it takes a quarter of an hour. The server is that of tests/support/faults.py. At
the end every rollout has to be there once, the ledger has to have charged no less than the server billed and no more
than the budget, and every settled request has to be one whose rows are in the table.
"""

import argparse
import collections
import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omniopd.store.config import commented_toml, made_with
from omniopd.store.layout import RoundDir, RunDir
from omniopd.store.ledger_read import read_totals

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from support.faults import TIMEOUT_S, faults
from support.scripted_teacher import ScriptedTeacher

CHUNKS_EACH = 10
ROLLOUTS = 2
FAULTY = 0.2
BUDGET_TOKENS = 100_000_000
PREFIX = "One step more, and then another one, until the sum is there. "
STUDENT = Path(__file__).parents[2] / "demo" / "models" / "student"


def trajectories(count: int) -> Iterator[dict[str, Any]]:
    for i in range(count):
        yield {"trajectory_id": f"{i:032x}", "round": 0, "prompt_id": f"{i}", "sample_index": 0, "question": f"Q{i}",
               "prompt_text": f"Q{i}\n", "prompt_ids": [1], "response_text": PREFIX * CHUNKS_EACH,
               "response_ids": [1], "logprobs": [0.0], "entropies": [0.0], "finish_reason": "stop"}  # fmt: skip


def chunks(count: int) -> Iterator[dict[str, Any]]:
    for i in range(count * CHUNKS_EACH):
        trajectory, place = divmod(i, CHUNKS_EACH)
        yield {"chunk_id": f"{i:032x}", "trajectory_id": f"{trajectory:032x}", "round": 0, "rank": place, "anchor": 0,
               "start": place, "end": place + 1, "anchor_entropy": random.random(), "prior": 0.5,
               "prefix_text": PREFIX * place, "chunk_text": PREFIX}  # fmt: skip


def make_round(path: Path, requests: int, base_url: str) -> RoundDir:
    """A round whose trajectories and chunks are there."""
    run = RunDir(path)
    path.mkdir(parents=True)
    teacher = {"model": "scripted", "base_url": base_url, "rollouts": ROLLOUTS, "max_tokens": 12, "max_attempts": 12,
               "timeout_s": TIMEOUT_S, "max_concurrency": 64, "budget_tokens": BUDGET_TOKENS}  # fmt: skip
    values: dict[str, dict[str, Any]] = {
        "student": {"model": str(STUDENT)}, "data": {"prompts": "none"}, "teacher": teacher,
    }  # fmt: skip
    run.config_toml.write_text(commented_toml(values))
    round_ = run.round(0)
    # Servers that answer with fewer rollouts than asked for make the stage ask for one at a time.
    count = int(1.2 * requests) // CHUNKS_EACH // ROLLOUTS + 1
    for table, rows in ((round_.trajectories, trajectories(count)), (round_.chunks, chunks(count))):
        table.begin(made_with(run.config(), table.spec.name))
        table.append(list(rows))
        table.finish()
    return round_


class Bill:
    """What the server did and would bill for, whether its answers arrived or not."""

    def __init__(self, teacher: ScriptedTeacher, kinds: dict[str, Any], chance: random.Random) -> None:
        self.happened: collections.Counter[str] = collections.Counter()
        self.tokens = 0
        self._teacher, self._kinds, self._chance = teacher, kinds, chance
        teacher.behave = self.behave

    def behave(self, body: dict[str, Any], number: int) -> Any:
        self._teacher.bodies[number] = {}  # a long run need not remember them
        name = self._chance.choice(list(self._kinds)) if self._chance.random() < FAULTY else ""
        if name:
            self.happened[name] += 1
        verdict = self._kinds[name](body) if name else None
        if getattr(verdict, "status", 200) == 200:
            n = 1 if name == "short n" else body["n"]
            self.tokens += len(body["prompt"]) + 4 * n
        return verdict


def drive(path: Path, teacher: ScriptedTeacher, kills: int, requests: int, chance: random.Random) -> tuple[int, str]:
    """Run `audit` to its end, killing it on the way. Returns how often it was killed, and what it said at last."""
    command = [sys.executable, "-m", "omniopd", "audit", str(path)]
    # Kills at random requests; a start that dies before its first request counts as well.
    at = sorted(chance.randrange(1, requests) for _ in range(kills))
    done = 0
    for until in at:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while teacher.requests < until and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        done += 1
    finished = subprocess.run(command, capture_output=True, text=True)
    return done, f"exit {finished.returncode}: {finished.stdout.strip()} {finished.stderr.strip().splitlines()[-1:]}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=50)
    arguments = parser.parse_args()
    chance = random.Random(1)
    teacher = ScriptedTeacher()
    kinds = faults(teacher)
    round_ = make_round(arguments.folder, arguments.requests, teacher.base_url)
    bill = Bill(teacher, kinds, chance)
    start = time.monotonic()
    killed, said = drive(arguments.folder, teacher, arguments.kills, arguments.requests, chance)
    print(f"{teacher.requests} requests, {killed} kills, {time.monotonic() - start:.0f} s; {said}")
    print(f"faults: {dict(bill.happened)}")

    expected = {(c, i) for c in round_.chunks.read(["chunk_id"])["chunk_id"].to_pylist() for i in range(ROLLOUTS)}
    rows = round_.rollouts.read(["chunk_id", "rollout_index", "status", "request_id"]).to_pylist()
    keys = [(row["chunk_id"], row["rollout_index"]) for row in rows]
    ledger = RunDir(arguments.folder).ledger
    totals = read_totals(ledger)
    with contextlib.closing(sqlite3.connect(ledger)) as db:
        paid = {name for (name,) in db.execute("SELECT request_id FROM requests WHERE state = 'settled'")}
        states = dict(db.execute("SELECT state, count(*) FROM requests GROUP BY state").fetchall())
        ((outbox,),) = db.execute("SELECT count(*) FROM outbox").fetchall()
    print(f"rows by status: {dict(collections.Counter(row['status'] for row in rows))}; requests by state: {states}")
    print(
        f"billed by the server {bill.tokens:,} <= charged {totals.charged_tokens:,} <= budget {BUDGET_TOKENS:,} tokens"
    )
    checks = {
        "each rollout is there": set(keys) == expected,
        "and once": len(keys) == len(set(keys)),
        "charged at least what the server billed": bill.tokens <= totals.charged_tokens,
        "charged at most the budget": totals.charged_tokens <= BUDGET_TOKENS,
        "nothing is reserved": totals.reserved_tokens == 0,
        "each settled request has its rows in the table": paid <= {row["request_id"] for row in rows},
        "each answered row was settled": {r["request_id"] for r in rows if r["status"] != "failed"} <= paid,
        "the outbox is empty": outbox == 0,
        "every fault happened": set(bill.happened) == set(kinds),
    }
    for name, holds in checks.items():
        print(f"{'ok  ' if holds else 'NOT '} {name}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
