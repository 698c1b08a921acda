"""kill -9 in the middle of each stage, then the same command again: nothing lost, nothing doubled, nothing paid twice.

The reference is a run that nobody disturbed. The command is a real process; what comes before it is done in this one.
"""

import json
import os
import signal
import time

import pytest

from omniopd.stages.audit.stage import audit
from omniopd.stages.generate.stage import generate
from omniopd.stages.score.stage import score
from omniopd.store.ledger_read import read_totals
from omniopd.train.trainer import train_round
from support.processes import Command, finish

STAGES = {"generate": generate, "audit": audit, "score": score, "train": train_round}


def kill_when(run, stage, condition):
    """Start a stage and kill it -9 as soon as the condition holds; it must not have finished by then."""
    process = Command(stage, run.path, *(["--no-check"] if stage == "audit" else []))
    deadline = time.monotonic() + 120
    while not condition():
        assert process.running, f"{stage} ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(10).returncode == -signal.SIGKILL


def rows_of(table):
    return sorted(table.read().to_pylist(), key=lambda row: [str(row[name]) for name in table.spec.key])


@pytest.fixture
def make_both(make_run, teacher, generated):
    """An undisturbed run and one to be disturbed, of equal configs, with the stages before `stage` done."""

    def make(stage, **sections):
        sections.setdefault("teacher", {}).setdefault("base_url", teacher.base_url)
        runs = [make_run(name=name, questions=48, **sections) for name in ("calm", "killed")]
        before = list(STAGES)[: list(STAGES).index(stage)]
        for run in runs:
            for name in before:
                generated(run) if name == "generate" else STAGES[name](run, 0, run.config())
        return runs

    return make


def test_generate(make_both, generated):
    calm, killed = make_both("generate")
    generated(calm)
    table = killed.round(0).trajectories
    kill_when(killed, "generate", lambda: table.manifest.rows >= 8)
    kept = table.existing_keys()
    assert 8 <= len(kept) < 48
    parts = table.manifest.parts
    finish("generate", killed.path)
    assert table.manifest.parts[: len(parts)] == parts, "committed parts are not written again"
    assert table.complete
    same = ("trajectory_id", "response_ids", "finish_reason", "prompt_id")
    assert [{k: row[k] for k in same} for row in rows_of(table)] == [
        {k: row[k] for k in same} for row in rows_of(calm.round(0).trajectories)
    ]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("killed_at", [pytest.param(1, marks=SLOW), 20, pytest.param(75, marks=SLOW)])
def test_audit(make_both, teacher, killed_at):
    """One request at a time, killed while the server works on one: exactly that one is asked again."""
    _, killed = make_both("audit", teacher={"max_concurrency": 1})

    def behave(body, number):
        if number == killed_at:
            os.kill(process.pid, signal.SIGKILL)

    teacher.behave = behave
    process = Command("audit", killed.path, "--no-check")
    assert process.wait().returncode == -signal.SIGKILL
    finish("audit", killed.path, "--no-check")

    chunks = killed.round(0).chunks.read(["chunk_id"])["chunk_id"].to_pylist()
    keys = [(row["chunk_id"], row["rollout_index"]) for row in rows_of(killed.round(0).rollouts)]
    assert len(keys) == len(set(keys))
    assert set(keys) == {(chunk, i) for chunk in chunks for i in range(4)}
    prompts = [body["prompt"] for body in teacher.bodies]
    assert len(prompts) == len(chunks) + 1
    totals = read_totals(killed.ledger)
    assert (totals.requests, totals.unknown, totals.reserved_tokens) == (len(prompts), 1, 0)


@SLOW
def test_audit_under_concurrency(make_both, teacher):
    """Whatever the server answered before the kill and the ledger has is never asked again."""
    _, killed = make_both("audit", teacher={"max_concurrency": 16})
    kill_when(killed, "audit", lambda: teacher.requests >= 40)
    time.sleep(0.2)
    before = teacher.requests
    finish("audit", killed.path, "--no-check")
    chunks = killed.round(0).chunks.manifest.rows
    keys = [(row["chunk_id"], row["rollout_index"]) for row in rows_of(killed.round(0).rollouts)]
    assert len(keys) == len(set(keys)) == 4 * chunks
    unknown = read_totals(killed.ledger).unknown
    assert 0 < unknown <= 16
    assert chunks <= teacher.requests <= chunks + unknown
    assert before < chunks


def test_score(make_both):
    calm, killed = make_both("score")
    score(calm, 0, calm.config())
    kill_when(killed, "score", lambda: killed.round(0).all_scores)
    finish("score", killed.path)
    for name in ("scores", "shards"):
        disturbed, reference = getattr(killed.round(0), name), getattr(calm.round(0), name)
        assert rows_of(disturbed) == rows_of(reference)
        assert len(list(disturbed.folder.glob("part-*"))) == len(disturbed.manifest.parts)


DRAFT = {"train": {"objective": "draft"}, "score": {"accept_threshold": 1e-30}, "teacher": {"rollouts": 1}}


@pytest.mark.parametrize(("sections", "steps"), [({}, 12), pytest.param(DRAFT, 24, marks=SLOW, id="draft")])
def test_train(make_both, sections, steps):
    calm, killed = make_both("train", **sections)
    train_round(calm, 0, calm.config())
    metrics = killed.metrics / "train-round=000.jsonl"
    kill_when(killed, "train", lambda: metrics.exists() and metrics.read_text().count("\n") >= 3)
    assert not killed.round(0).policy.exists()
    finish("train", killed.path)
    name = "model.safetensors"
    assert (killed.round(0).policy / name).read_bytes() == (calm.round(0).policy / name).read_bytes()
    assert [json.loads(line)["step"] for line in metrics.read_text().splitlines()] == list(range(steps))
