"""Rounds on a Ray cluster of two nodes with a slot each: what comes out where nodes and drivers die, what is said."""

import hashlib
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from omniopd.cluster.connection import connected
from omniopd.cluster.driver import told
from omniopd.cluster.generate import _fill
from omniopd.cluster.place import Place
from omniopd.cluster.slots import slots_of
from omniopd.store.architecture import check_layout, check_student
from omniopd.store.errors import ConfigError, InputError
from omniopd.store.journal import StageRun, read_stage_run
from omniopd.store.layout import RunDir
from omniopd.store.model import weights_hash
from omniopd.store.sections import ClusterConfig
from omniopd.store.worker import Worker
from support import training as kit
from support.processes import Command, finish
from support.ray_cluster import Nodes, ray_cluster, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# One response at a time: its floats then do not depend on what else is in the batch.
SETTINGS = {"generate": {"max_new_tokens": 56, "batch_size": 1, "part_rows": 1}, "teacher": {"rollouts": 2}}


@pytest.fixture(scope="module")
def module_nodes() -> Iterator[Nodes]:
    with ray_cluster(2) as nodes:
        yield nodes


@pytest.fixture
def nodes(module_nodes: Nodes) -> Nodes:
    module_nodes.restore()
    return module_nodes


def table_hash(run: RunDir) -> str:
    """Of all columns, the floats included."""
    rows = run.round(0).trajectories.read().sort_by("trajectory_id").to_pylist()
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def twins(make_run, questions: int, **settings) -> tuple[RunDir, RunDir]:
    """Two runs on the same prompts."""
    plain, shared = make_run("plain", questions, **settings), make_run("shared", questions, **settings)
    shared.config_toml.write_text(plain.config_toml.read_text())
    return plain, shared


def half_done_unit(run: RunDir) -> StageRun | None:
    """The record of a unit that has committed a part and is still at it."""
    round_ = run.round(0)
    committed = {Worker.of_file(part.name) for part in round_.trajectories.manifest.parts}
    for path in round_.path.glob(".generate.shard*run.json"):
        record = read_stage_run(path)
        if record is not None and record.state == "running" and Worker.of_file(path.name) in committed:
            return record
    return None


def test_a_node_that_dies_inside_a_unit_changes_nothing_in_the_table(make_run, nodes):
    plain, shared = twins(make_run, 40, **SETTINGS)
    finish("generate", plain.path, "--no-check")
    command = Command("generate", shared.path, "--no-check", *nodes.words)
    nodes.kill(nodes.node_of(until(lambda: half_done_unit(shared))))
    rows = shared.round(0).trajectories.manifest.rows
    assert 0 < rows < 40
    ended = command.wait(300)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("40 trajectories")
    assert shared.round(0).trajectories.complete
    assert table_hash(shared) == table_hash(plain)


def test_a_round_survives_its_driver_and_the_node_of_the_first_rank(make_run, nodes, teacher):
    settings = {"teacher.base_url": teacher.base_url, "train.processes": 2, "train.epochs": 6}
    words = ["--no-check", *(word for key, value in settings.items() for word in ("--set", f"{key}={value}"))]
    plain, shared = twins(make_run, 24, **SETTINGS)
    finish("run", plain.path, *words)
    round_ = shared.round(0)

    driver = Command("run", shared.path, *words, *nodes.words)
    until(lambda: round_.trajectories.manifest.rows > 2)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait().returncode == -signal.SIGKILL
    assert not round_.trajectories.complete

    driver = Command("run", shared.path, *words, *nodes.words)
    until(lambda: (round_.checkpoint / "latest").is_file())
    (rank,) = round_.stage_runs("train")
    nodes.kill(nodes.node_of(rank))
    assert not round_.policy.exists()
    until(lambda: round_.waiting("train"))
    nodes.add()
    ended = driver.wait(300)
    assert ended.returncode == 0, ended.stderr
    assert "train: waiting for 1 of 2 slots" in ended.stderr
    assert table_hash(shared) == table_hash(plain)
    assert weights_hash(round_.policy) == weights_hash(plain.round(0).policy)
    assert not round_.waiting("train")
    assert not [path for path in (shared.path / ".ray").iterdir() if path.name.startswith("train")]


def scored(path: Path, **train) -> RunDir:
    """A run whose first round is ready to be trained."""
    config = kit.make_config(kit.save_student(path / "student", "qwen3"), **train)
    run = RunDir(path / "run")
    kit.write_toml(run, config)
    kit.write_round(run, 0, config, kit.shard_rows(16))
    return run


def test_a_node_that_is_about_to_be_taken_away_is_a_reason_for_a_checkpoint(tmp_path, nodes):
    run = scored(tmp_path, processes=2, epochs=100, checkpoint_every=100_000)
    round_ = run.round(0)
    command = Command("train", run.path, *nodes.words, env={"RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"})
    until(lambda: run.train_steps(0).is_file() and run.train_steps(0).read_text().count("\n") > 2)
    (rank,) = round_.stage_runs("train")
    node = nodes.node_of(rank)
    nodes.announce_loss(node, seconds=60)
    until(lambda: (round_.checkpoint / "latest").is_file())
    nodes.kill(node)
    nodes.add()
    ended = command.wait(300)
    assert ended.returncode == 0, ended.stderr
    last = round_.checkpoint / "latest"
    assert last.read_text() == f"step={400:06d}\n"
    assert [json.loads(line)["step"] for line in run.train_steps(0).read_text().splitlines()] == list(range(400))


def test_fewer_slots_than_ranks_are_waited_for_and_said(tmp_path, nodes):
    run = scored(tmp_path, processes=3)
    command = Command("train", run.path, *nodes.words)
    until(lambda: run.round(0).waiting("train"))
    status = json.loads(finish("status", run.path, "--json").stdout)
    train = status["rounds"][0]["stages"][3]
    assert (train["state"], train["waiting"]) == ("running", "waiting for 1 of 3 slots")
    assert "round 0 train: 0 steps, waiting for 1 of 3 slots" in finish("status", run.path).stdout
    command.send_signal(signal.SIGINT)
    ended = command.wait(300)
    assert ended.returncode == 130
    said = ended.stderr.splitlines()
    assert said[0] == "train: waiting for 1 of 3 slots"
    assert said[-1] == "omniopd: Interrupted. Run the same command again to resume."
    assert run.round(0).waiting("train") is None


def without_progress(stderr: str) -> list[str]:
    """A slow machine takes more than the half minute after which there is a line of progress."""
    return [line for line in stderr.splitlines() if not line.startswith(("generate: ", "train: "))]


def test_an_error_in_a_worker_is_the_line_that_it_is_on_this_machine(tmp_path, make_run, nodes):
    run = make_run()
    words = "generate", run.path, "--no-check", "--set", "student.engine=vllm"
    alone, ended = Command(*words).wait(300), Command(*words, *nodes.words).wait(300)
    assert (alone.returncode, ended.returncode) == (3, 3)
    assert without_progress(ended.stderr) == without_progress(alone.stderr)
    run = scored(tmp_path, processes=2, tensor_parallel=3)
    ended = Command("train", run.path, *nodes.words).wait(300)
    with pytest.raises(ConfigError) as here:
        check_layout(check_student(tmp_path / "student"), run.config().train, 2)
    assert ended.returncode == 3
    assert without_progress(ended.stderr) == [f"omniopd: {here.value}"]


def test_a_worker_that_does_not_see_the_run_says_which_path_on_which_node(make_run, nodes):
    run = make_run()
    with connected(ClusterConfig(on="ray", address=nodes.address)):
        slots = slots_of(1)
        for path, state in ((run.path, "is another folder"), (run.path / "gone", "is missing")):
            place = Place(path, Path.cwd(), "driver-elsewhere")
            with pytest.raises(InputError) as caught, told():
                _fill(place, 0, run.config(), slots, 1, 1)
            assert type(caught.value) is InputError
            assert caught.value.problem.startswith(f"{path} {state} on the node {socket.gethostname()} (")
