"""Audit beside a generate that still writes."""

import time

import pytest

from omniopd.run import audit_beside
from omniopd.stages.audit.stage import audit
from omniopd.stages.generate.stage import generate
from omniopd.store.config import made_with
from omniopd.store.ledger_read import read_forecast
from support.processes import Command


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def source(make_run, teacher, generated):
    return generated(make_run(name="source", questions=12, teacher={"base_url": teacher.base_url}))


class Writer:
    """Writes another run's trajectories as `generate` does, part by part."""

    def __init__(self, run, source):
        self.table = run.round(0).trajectories
        rows = source.round(0).trajectories.read()
        self.halves = [rows.slice(0, 6), rows.slice(6)]
        self.table.begin(made_with(run.config(), "trajectories"))

    def write(self):
        self.table.append(self.halves.pop(0))


def follow(run, *words):
    return Command("audit", run.path, "--no-check", "--round", 0, "--follow", *words)


def test_chunks_are_asked_for_while_trajectories_are_still_missing(make_run, source, teacher):
    run = make_run(questions=12, teacher={"base_url": teacher.base_url})
    writer = Writer(run, source)
    process = follow(run)
    writer.write()
    until(lambda: teacher.requests >= 12)
    assert not run.round(0).chunks.complete
    writer.write()
    writer.table.finish()
    done = process.wait(60)
    assert done.returncode == 0, done.stderr
    asked = teacher.requests
    audit(source, 0, source.config())
    rows = [r.round(0).rollouts.read(["chunk_id", "rollout_index"]).to_pylist() for r in (run, source)]
    assert sorted(map(str, rows[0])) == sorted(map(str, rows[1]))
    assert asked == run.round(0).chunks.manifest.rows
    assert run.round(0).rollouts.complete
    assert read_forecast(run.ledger, 0)["requests"] == asked


def test_with_a_budget_it_waits_until_it_knows_which_chunks_are_worth_it(make_run, source, teacher):
    run = make_run(questions=12, teacher={"base_url": teacher.base_url})
    writer = Writer(run, source)
    writer.write()
    process = follow(run, "--set", "teacher.budget_tokens=1000000")
    until(lambda: run.round(0).chunks.manifest.rows > 0)
    time.sleep(0.5)
    assert teacher.requests == 0
    writer.write()
    writer.table.finish()
    done = process.wait(60)
    assert done.returncode == 0, done.stderr
    assert teacher.requests == run.round(0).chunks.manifest.rows


@pytest.mark.slow
def test_run_overlaps_the_two_if_it_is_told_to(make_run, teacher):
    run = make_run(questions=12, teacher={"base_url": teacher.base_url}, run={"overlap": True})
    config = run.config()
    with audit_beside(run, 0, config, ["teacher.max_attempts=3"]):
        generate(run, 0, config)
    asked = teacher.requests
    assert asked == run.round(0).chunks.manifest.rows > 0
    audit(run, 0, config)
    assert teacher.requests == asked
