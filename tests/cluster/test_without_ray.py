"""What `generate`, `train` and `status` do for a cluster, held on one machine."""

import json
import os
import socket
import threading
import time

import pytest
import torch.distributed as dist

from omniopd.stages.generate.engines import kept
from omniopd.stages.generate.stage import generate
from omniopd.store.errors import BusyError
from omniopd.store.journal import Waiting
from omniopd.store.layout import RunDir
from omniopd.store.model import weights_hash
from omniopd.store.worker import Worker
from omniopd.train.trainer import train_round
from omniopd.view.status import read_status
from omniopd.view.status_text import lines
from support import training as kit


def test_one_engine_fills_several_shares(make_run, monkeypatch):
    made = []
    make = kept.make_engine
    monkeypatch.setattr(kept, "make_engine", lambda *given, say: made.append(make(*given, say=say)) or made[-1])
    run = make_run(questions=6, generate={"max_new_tokens": 8})
    engine = kept.KeptEngine()
    for index in range(3):
        generate(run, 0, run.config(), Worker(index, 3), engine_of=engine)
    assert run.round(0).trajectories.complete
    assert len(made) == 1


def test_the_first_share_already_says_what_the_round_comes_to(make_run):
    run = make_run(questions=6, generate={"max_new_tokens": 4, "samples_per_prompt": 2})
    generate(run, 0, run.config(), Worker(0, 3))
    stage = read_status(run, run.config()).rounds[0].stages[0]
    assert (stage.done, stage.expected) == (4, 12)


def test_a_lock_is_waited_for_as_long_as_is_told(make_run):
    run = make_run(questions=2, generate={"max_new_tokens": 4})
    worker, held, done = Worker(0, 2), threading.Event(), threading.Event()

    def hold() -> None:
        with run.round(0).lock("generate", worker):
            held.set()
            done.wait()

    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    with pytest.raises(BusyError, match="shard 0/2"):
        generate(run, 0, run.config(), worker)
    threading.Timer(0.5, done.set).start()
    assert generate(run, 0, run.config(), worker, patience_s=60).startswith("1 trajectories")


def test_status_says_what_a_stage_waits_for_while_somebody_does(make_run):
    run = make_run()
    round_ = run.round(0)
    round_.wait("train", have=1, need=4)
    status = read_status(run, run.config())
    train = status.rounds[0].stages[3]
    assert (train.state, train.waiting) == ("running", "waiting for 3 of 4 slots")
    assert ("now", "round 0 train: 0 steps, waiting for 3 of 4 slots") in lines(status)
    gone = Waiting(pid=2**22 + 1, host=socket.gethostname(), have=1, need=4)
    (round_.path / ".train.waiting.json").write_text(gone.model_dump_json())
    assert read_status(run, run.config()).rounds[0].stages[3].state == "missing"
    round_.wait("train", have=1, need=4)
    assert round_.waiting("train").pid == os.getpid()
    round_.wait("train", have=4, need=4)
    assert round_.waiting("train") is None


@pytest.fixture
def scored(tmp_path):
    """Twins, ready to be trained."""
    config = kit.make_config(kit.save_student(tmp_path / "student", "qwen3"), epochs=2, checkpoint_every=100)
    runs = RunDir(tmp_path / "one"), RunDir(tmp_path / "two")
    for run in runs:
        kit.write_round(run, 0, config, kit.shard_rows(10))
    return config, *runs


def test_a_process_group_that_exists_is_used_and_stays(scored):
    config, plain, given = scored
    train_round(plain, 0, config)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        train_round(given, 0, config)
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    assert weights_hash(given.round(0).policy) == weights_hash(plain.round(0).policy)


def test_a_machine_that_is_about_to_leave_is_a_reason_for_a_checkpoint(scored):
    config, plain, run = scored
    train_round(plain, 0, config)
    asked = []

    def leaving():
        asked.append(time.monotonic())
        return len(asked) == 2

    def lost(done, total, metrics):
        if done == 4:
            raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError):
        train_round(run, 0, config, lost, leaving=leaving)
    assert (run.round(0).checkpoint / "latest").read_text() == "step=000002\n"
    assert len(asked) == 3, "after each step"
    train_round(run, 0, config)
    assert weights_hash(run.round(0).policy) == weights_hash(plain.round(0).policy)
    assert [json.loads(line)["step"] for line in run.train_steps(0).read_text().splitlines()] == list(range(6))
