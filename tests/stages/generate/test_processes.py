"""Several engines on one machine: processes that fill the table of one, fail as one, and end with their parent."""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from omniopd import Run
from omniopd.stages.generate import processes
from omniopd.stages.generate.processes import sample_in_processes
from omniopd.stages.generate.stage import generate
from omniopd.stages.generate.workers import processes_of
from omniopd.store.errors import BusyError, ConfigError, InputError, OmniopdError
from omniopd.store.layout import RunDir
from omniopd.store.worker import ALONE, Worker
from support.processes import Command

SLOW = pytest.mark.slow


# -- how many


@pytest.mark.parametrize(
    ("asked", "each", "worker", "gpus", "environment", "count"),
    [
        ("auto", 1, ALONE, 0, {}, 1),
        ("auto", 1, ALONE, 8, {}, 8),
        ("auto", 2, ALONE, 8, {}, 4),
        ("auto", 3, ALONE, 8, {}, 2),
        ("auto", 8, ALONE, 4, {}, 1),  # vLLM says what is wrong with that
        ("auto", 1, Worker(1, 4), 8, {}, 1),
        ("auto", 1, ALONE, 8, {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}, 1),
        ("auto", 1, ALONE, 8, {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_LOCALID": "0"}, 8),
        (3, 1, ALONE, 0, {}, 3),
        (3, 2, ALONE, 6, {}, 3),
        (1, 1, Worker(1, 4), 1, {}, 1),
    ],
)
def test_auto_is_an_engine_for_each_gpu_or_group_of_gpus(asked, each, worker, gpus, environment, count):
    assert processes_of(asked, each, worker, lambda: gpus, environment) == count


@pytest.mark.parametrize(
    ("asked", "each", "gpus", "line"),
    [
        (2, 1, 1, "generate.processes is 2, and this machine has 1 GPU. Set generate.processes = 1: "),
        (4, 2, 7, r"4, and this machine has 7 GPUs. Set generate.processes = 3: .* 2 GPUs .*tensor_parallel"),
    ],
)
def test_more_processes_than_gpus_are_refused(asked, each, gpus, line):
    with pytest.raises(ConfigError, match=line):
        processes_of(asked, each, ALONE, lambda: gpus, {})


def test_more_processes_than_gpus_are_refused_before_anything_is_read_or_written(make_run, monkeypatch):
    run = make_run(generate={"processes": 2}, data={"prompts": "nowhere.jsonl"})
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(ConfigError, match="this machine has 1 GPU"):
        Run(run.path).generate(check=False)
    assert run.rounds() == []


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["--shard", "0/2", "--set", "generate.processes=2"], 2, "generate.processes is 2, and this process is shard"),
        (["--set", "generate.processes=0"], 3, "generate.processes: Input should be 'auto' or greater than 0. "),
        (["--set", "generate.processes=many"], 3, "generate.processes: Input should be 'auto' or a valid integer"),
    ],
)
def test_bad_input_is_one_line(make_run, words, code, line):
    run = make_run()
    ended = Command("generate", run.path, "--no-check", *words).wait()
    assert ended.returncode == code
    assert ended.stderr.startswith(f"omniopd: {line}")
    assert ended.stderr.count("\n") == 1
    assert run.rounds() == []


# -- the parent, with processes that follow a script


SCRIPT = """
import json, os, signal, subprocess, sys, time, traceback
number, folder = int(sys.argv[1]), sys.argv[2]
config = json.loads(sys.stdin.readline())
def tell(*message):
    print(json.dumps(message), flush=True)
def wait():
    return sys.stdin.readline().strip()
def note(name):
    open(os.path.join(folder, f"{name}-{number}"), "w").write(str(os.getpid()))
note("started")
"""


@pytest.fixture
def sample(make_run, tmp_path, monkeypatch):
    """Sample a round in processes that do what `script` says; returns what they said. Each has a file `started-N` with
    its pid in `tmp_path`."""
    run = make_run()

    def start(script, count=2, before=lambda: None, **generate):
        def command(_run, _index, worker):
            return [sys.executable, "-c", SCRIPT + script, str(worker.index), str(tmp_path)]

        monkeypatch.setattr(processes, "_command", command)
        said = []
        config = run.config(tuple(f"generate.{key}={value}" for key, value in generate.items()))
        sample_in_processes(run, 0, config, count, (12, 2), before, said.append)
        return said

    start.run = run
    return start


def pids(folder, name="started"):
    return [int(path.read_text()) for path in sorted(folder.glob(f"{name}-*"))]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return True


def until(condition, deadline_s=60):
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


FAILS = """
if number == 1:
    tell("ready")
    wait()
    tell("error", "InputError", "A prompt is too long.", "Shorten it.")
    sys.exit(3)
tell("ready")
wait()
assert wait() == ""
note("stopped")
"""


def test_what_a_process_says_is_wrong_is_what_the_command_says_and_the_others_stop(sample, tmp_path):
    with pytest.raises(InputError) as caught:
        sample(FAILS, count=3)
    assert (caught.value.problem, caught.value.hint) == ("A prompt is too long.", "Shorten it.")
    assert len(pids(tmp_path)) == 3
    assert pids(tmp_path, "stopped") == [pids(tmp_path)[0], pids(tmp_path)[2]]
    assert not any(map(alive, pids(tmp_path)))


def test_a_crash_is_one_line(sample):
    with pytest.raises(OmniopdError) as caught:
        sample(
            "tell('ready'); wait()\n"
            "if number == 0: tell('crash', 'RuntimeError: out of memory.'); raise RuntimeError('out of memory.')\n"
            "wait()"
        )
    log = sample.run.generate_log(0)
    assert str(caught.value) == (
        "Process 0 of 2 that generate started failed: RuntimeError: out of memory."
        f" See {log}; the same command resumes."
    )
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    ("end", "line"), [("os.kill(os.getpid(), 9)", "was killed by SIGKILL"), ("os._exit(7)", "ended with exit code 7")]
)
@pytest.mark.parametrize("ready", [True, False])
def test_a_process_that_dies_without_a_word_ends_the_others_too(sample, tmp_path, end, line, ready):
    loaded = "tell('ready'); wait()\n"
    script = f"if number == 1:\n  {loaded if ready else ''}  {end}\n{loaded}wait()"
    with pytest.raises(OmniopdError, match=f"Process 1 of 2 that generate started {line}"):
        sample(script)
    assert not any(map(alive, pids(tmp_path)))


def test_a_process_that_does_not_listen_is_killed_with_what_it_has_started(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.2)
    monkeypatch.setattr(processes, "_LEFT_BEHIND_S", 0.2)
    deaf = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # which a child inherits
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "open(os.path.join(folder, f'child-{number}'), 'w').write(str(child.pid))\n"
        "tell('ready'); wait()\n"
        "if number == 1: sys.exit(5)\n"
        "time.sleep(600)"
    )
    with pytest.raises(OmniopdError, match="exit code 5"):
        sample(deaf)
    assert len(pids(tmp_path, "child")) == 2
    until(lambda: not any(map(alive, pids(tmp_path) + pids(tmp_path, "child"))))


def test_nothing_is_sampled_until_all_engines_are_loaded_and_the_teacher_was_looked_at(sample, tmp_path):
    def before():
        assert len(pids(tmp_path, "loaded")) == 2
        assert pids(tmp_path, "sampled") == []

    script = "time.sleep(number / 5); note('loaded'); tell('ready'); assert wait() == 'go'; note('sampled')"
    sample(script, before=before)
    assert len(pids(tmp_path, "sampled")) == 2


@pytest.mark.parametrize("refusal", [BusyError("The teacher is away.", "Wait."), KeyboardInterrupt()])
def test_a_refusal_or_ctrl_c_ends_processes_that_wait(sample, tmp_path, refusal):
    def before():
        raise refusal

    with pytest.raises(type(refusal)):
        sample("tell('ready')\nif wait() == 'go': note('sampled')", before=before)
    assert pids(tmp_path, "sampled") == []
    assert not any(map(alive, pids(tmp_path)))


def test_a_process_without_prompts_is_done_while_the_others_sample(sample):
    said = sample("if number == 0: sys.exit()\ntell('ready'); tell('say', wait())")
    assert said == ["go"]


def test_each_process_has_gpus_of_its_own_of_those_that_are_visible(sample, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-a,5,1")
    said = sample("tell('ready'); wait(); tell('say', os.environ['CUDA_VISIBLE_DEVICES'])", tensor_parallel=2)
    assert sorted(said) == ["3,GPU-a", "5,1"]


def test_without_gpus_processes_share_the_cores(sample, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 9)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert sample("tell('ready'); wait(); tell('say', os.environ['OMP_NUM_THREADS'])") == ["4", "4"]


@pytest.fixture
def shown(monkeypatch):
    """What progress bars get: title, total and how many are there; then how many are newly done, and a note."""
    told = []

    @contextlib.contextmanager
    def progress(title, total, done):
        told.append((title, total, done))
        yield lambda count, note: told.append((count, note))

    monkeypatch.setattr("omniopd.stages.generate.shown.progress", progress)
    return told


def test_the_bar_shows_the_sum_over_the_processes(sample, shown):
    sample("tell('ready'); wait()\ntime.sleep(number / 2)\ntell('growth', 3 + number, 100, 2 + number, 20, number)")
    assert [count for count, *_ in shown[1:]] == [2, 3]
    assert shown[0] == ("generate", 12, 2)
    assert shown[1][1].endswith(" tokens/s, 3 running, mean length 10, 0.0% cut off")
    assert shown[2][1].endswith(" tokens/s, 7 running, mean length 8, 20.0% cut off")


def test_what_processes_print_goes_to_the_log_and_the_config_is_what_the_parent_has(sample):
    said = sample(
        "print('loading', file=sys.stderr); tell('ready'); wait()\n"
        "tell('say', [config['generate'], config['student']['engine']])",
        top_p=0.5, processes=2,
    )  # fmt: skip
    assert all((g["top_p"], g["processes"], engine) == (0.5, 1, "transformers") for g, engine in said)
    assert sample.run.generate_log(0).read_text().count("loading\n") == 2


# -- real processes


def rows_of(run):
    return sorted(run.round(0).trajectories.read().to_pylist(), key=lambda row: row["trajectory_id"])


def content_hash(run):
    """Of every value of every row; the bits of a float tell it from any other."""
    return hashlib.sha256(json.dumps(rows_of(run)).encode()).hexdigest()


@pytest.fixture
def make_both(make_run, generated):
    """Two runs of one config; the first is filled by one process. Each response is decoded alone: the last bits of a
    log-prob depend on what else is in the batch."""

    def make(questions):
        settings = {"max_new_tokens": 48, "batch_size": 1, "part_rows": 3}
        alone, several = (make_run(name, questions=questions, generate=settings) for name in ("alone", "several"))
        several.config_toml.write_text(alone.config_toml.read_text())  # the same prompts, so the same ids
        generated(alone)
        return alone, several

    return make


def workers_of(run):
    return {Worker.of_file(path.name) for path in run.round(0).trajectories.folder.glob("part*")}


def test_two_processes_give_the_table_of_one_also_in_a_notebook(make_both, shown, monkeypatch):
    alone, several = make_both(questions=24)
    shown.clear()

    async def cell():
        return Run(several.path, {"generate.processes": 2}).generate(check=False)

    line = asyncio.run(cell())  # a notebook's cells run inside a loop
    start, *growths = shown
    assert start == ("generate", 24, 0), "one bar"
    assert sum(count for count, _ in growths) == 24
    assert " tokens/s, 0 running, mean length " in growths[-1][1]
    assert line == generate(alone, 0, alone.config())
    assert content_hash(several) == content_hash(alone)
    assert workers_of(several) == {Worker(0, 2), Worker(1, 2)}
    assert several.round(0).trajectories.complete
    assert [run.state for run in several.round(0).stage_runs("generate")] == ["ended"] * 2
    # A second call finds nothing to do, in any number of processes, and starts none.
    recorded = several.round(0).stage_runs("generate")
    manifest = several.round(0).trajectories.manifest
    monkeypatch.setattr(processes, "_command", None)
    assert Run(several.path, {"generate.processes": 3}).generate(check=False) == line
    assert several.round(0).trajectories.manifest == manifest
    assert several.round(0).stage_runs("generate") == recorded


def start(*words):
    # A shell's `&` and nohup have SIGINT ignored for all that they start, and a child of theirs inherits it.
    return subprocess.Popen(
        [sys.executable, "-m", "omniopd", *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def sampling(run, rows=6):
    """Whether both processes have committed something, and `rows` rows are there."""
    return run.round(0).trajectories.manifest.rows >= rows and len(workers_of(run)) == 2


def pids_of(run):
    found = [stage_run.pid for stage_run in run.round(0).stage_runs("generate")]
    assert len(found) == 2
    return found


@SLOW
@pytest.mark.parametrize("again", [1, 2, 3])
def test_one_of_two_is_killed_and_any_number_of_processes_gives_the_same_table(make_both, again):
    alone, several = make_both(questions=160)
    command = start("generate", several.path, "--no-check", "--set", "generate.processes=2")
    until(lambda: sampling(several))
    first, second = pids_of(several)
    os.kill(second, signal.SIGKILL)
    _, stderr = command.communicate(timeout=60)
    assert command.returncode == 3
    assert stderr == (
        "omniopd: Process 1 of 2 that generate started was killed by SIGKILL."
        f" See {several.generate_log(0)}; the same command resumes.\n"
    )
    assert not alive(first)
    parts = several.round(0).trajectories.manifest.parts
    assert 6 <= sum(part.rows for part in parts) < 160
    ended = Command("generate", several.path, "--no-check", "--set", f"generate.processes={again}").wait()
    assert ended.returncode == 0, ended.stderr
    assert set(parts) < set(several.round(0).trajectories.manifest.parts), "what was committed stays"
    assert several.round(0).trajectories.complete
    assert content_hash(several) == content_hash(alone)


@SLOW
@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_is_one_line_and_no_process_is_left(make_run, times):
    run = make_run(questions=4000, generate={"max_new_tokens": 60, "part_rows": 3})
    command = start("generate", run.path, "--no-check", "--set", "generate.processes=2")
    until(lambda: sampling(run))
    for _ in range(times):
        command.send_signal(signal.SIGINT)
        time.sleep(0.02)
    stdout, stderr = command.communicate(timeout=60)
    assert command.returncode == 130
    assert (stdout, stderr) == ("", "omniopd: Interrupted. Run the same command again to resume.\n")
    assert not any(map(alive, pids_of(run)))
    assert run.round(0).trajectories.manifest.rows >= 6


@SLOW
def test_processes_end_with_a_parent_that_is_killed(make_run):
    run = make_run(questions=4000, generate={"max_new_tokens": 60, "part_rows": 3})
    command = start("generate", run.path, "--no-check", "--set", "generate.processes=2")
    until(lambda: sampling(run))
    command.kill()
    command.wait()
    until(lambda: not any(map(alive, pids_of(run))), 10)
    command.communicate()


@SLOW
def test_an_engine_that_does_not_start_says_the_line_of_one_process(make_run):
    run = make_run(student={"engine": "vllm"})
    words = ("generate", run.path, "--no-check", "--set", "generate.vllm={ no_such_argument = 1 }")
    alone = Command(*words).wait()
    several = Command(*words, "--set", "generate.processes=2").wait()
    assert alone.returncode == 3
    assert (several.returncode, several.stdout, several.stderr) == (3, alone.stdout, alone.stderr)
    assert "vLLM" in several.stderr
    assert several.stderr.count("\n") == 1


@SLOW
def test_run_samples_in_processes_and_the_other_stages_find_the_table(make_run, teacher):
    run = make_run(questions=6, teacher={"rollouts": 2, "base_url": teacher.base_url}, generate={"processes": 2})
    said = []
    policy = Run(run.path, {"train.steps": 1}).run(1, say=said.append)
    assert said[0].startswith("round 0 generate: 6 trajectories")
    assert (policy / "model.safetensors").is_file()
    assert {Worker.of_file(path.name) for path in RunDir(run.path).round(0).trajectories.folder.glob("part*")} == {
        Worker(0, 2), Worker(1, 2)
    }  # fmt: skip
