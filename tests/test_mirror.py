"""A run with a mirror, from the command line: the machine is lost, and the run goes on from the mirror elsewhere."""

import json
import shutil
import signal
import time

import pytest

from omniopd import Run
from omniopd.store.errors import BudgetReached, MirrorError
from omniopd.store.layout import RunDir
from omniopd.store.ledger_read import read_totals
from omniopd.store.mirror import background
from omniopd.store.mirror.places import Folder, open_place
from omniopd.store.mirror.pull import pull
from omniopd.store.mirror.writer import newest
from omniopd.study.arms import Arm, arm_values
from support.processes import Command, finish

FOLDER = pytest.mark.parametrize("mirror_url", ["folder"], indirect=True)


@pytest.fixture
def mirrored(make_run, teacher, mirror_url):
    """A run with a mirror; keyword arguments are further keys of [teacher]."""

    def make(questions=6, **keys):
        run = make_run(
            questions=questions,
            teacher={"rollouts": 2, "base_url": teacher.base_url} | keys,
            train={"steps": 1},
            run={"mirror": mirror_url},
        )
        return Run(run.path)

    return make


def index_of(url):
    index = newest(open_place(url), url)
    assert index is not None
    return index


def test_each_stage_is_pushed_and_a_lost_machine_is_replaced_between_any_two(mirrored, teacher, mirror_url, tmp_path):
    run = mirrored()
    stages = ["generate", "audit", "score", "train"]
    for number, stage in enumerate(stages):
        options = {"check": False} if number < 2 else {}
        getattr(run, stage)(**options)
        shutil.move(run.folder.path, tmp_path / f"lost{number}")
        pull(mirror_url, run.folder.path)
        for table in run.folder.round(0).tables:
            table.verify()
    assert [stage.state for stage in run.status().rounds[0].stages] == ["done"] * 4
    assert teacher.requests == run.folder.round(0).chunks.manifest.rows
    undisturbed = Run(tmp_path / "lost3")
    assert run.table("shards").equals(undisturbed.table("shards"))
    assert read_totals(run.folder.ledger) == read_totals(undisturbed.folder.ledger)


def test_an_audit_that_is_killed_with_its_machine_goes_on_elsewhere_within_the_budget(
    mirrored, teacher, mirror_url, tmp_path
):
    """The oracle is the teacher, which counts what it has answered."""
    run = mirrored(questions=24, max_concurrency=4, budget_tokens=100_000)
    run.generate(check=False)
    teacher.behave = lambda body, number: time.sleep(0.01)
    audit = Command("audit", run.folder.path, "--no-check")
    while teacher.answered < 20:
        assert audit.running
        time.sleep(0.01)
    audit.send_signal(signal.SIGKILL)
    audit.wait(10)
    teacher.behave = lambda body, number: None
    billed = bill(teacher)
    shutil.move(run.folder.path, tmp_path / "lost")
    said = finish("pull", mirror_url, run.folder.path).stdout
    assert "count as spent" in said
    assert read_totals(run.folder.ledger).charged_tokens >= billed
    finish("audit", run.folder.path, "--no-check")
    assert run.folder.round(0).rollouts.complete
    assert bill(teacher) <= read_totals(run.folder.ledger).charged_tokens <= 100_000
    assert len(run.folder.round(0).rollouts.read()) == 2 * run.folder.round(0).chunks.manifest.rows


def bill(teacher):
    """What the teacher has charged for all that it was asked."""
    usages = [teacher.answer(body)["usage"] for body in teacher.bodies]
    return sum(usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)


@FOLDER
def test_a_budget_that_was_spent_on_the_lost_machine_is_not_spent_again(mirrored, teacher, mirror_url, tmp_path):
    run = mirrored(questions=12)
    run.generate(check=False)
    cap = f"teacher.budget_tokens={6 * 140}"
    with pytest.raises(BudgetReached):
        Run(run.folder.path, [cap]).audit(check=False)
    asked = teacher.requests
    assert 0 < asked < 36
    shutil.rmtree(run.folder.path)
    pull(mirror_url, run.folder.path)
    with pytest.raises(BudgetReached):
        Run(run.folder.path, [cap]).audit(check=False)
    assert teacher.requests - asked <= 1


def test_an_audit_pushes_while_it_runs(mirrored, teacher, mirror_url, monkeypatch, tmp_path):
    monkeypatch.setattr(background, "SECONDS_BETWEEN_PUSHES", 0.05)
    run = mirrored(max_concurrency=1)
    run.generate(check=False)
    pulled = []

    def behave(body, number):
        deadline = time.monotonic() + 20
        while number == 12 and time.monotonic() < deadline:  # the machine may be lost at any time
            pull(mirror_url, tmp_path / f"again{len(pulled)}")
            again = RunDir(tmp_path / f"again{len(pulled)}")
            pulled.append(read_totals(again.ledger).requests + again.round(0).rollouts.manifest.rows)
            if pulled[-1] > 12:
                break

    teacher.behave = behave
    run.audit(check=False)
    assert pulled[-1] > 12, "what was answered is in the copy, not only what it may have cost"


@FOLDER
def test_when_the_mirror_is_away_the_audit_ends_with_one_line_and_loses_no_answer(
    mirrored, teacher, mirror_url, monkeypatch
):
    run = mirrored(questions=12, max_concurrency=2, budget_tokens=10_000)
    run.generate(check=False)
    create, away = Folder.create, []

    def fail(place, name, content):
        if teacher.answered >= 6 and not away.append(name):
            raise MirrorError("The mirror is away.", "Bring it back.")
        return create(place, name, content)

    monkeypatch.setattr(Folder, "create", fail)
    with pytest.raises(MirrorError, match="The mirror is away"):
        run.audit(check=False)
    monkeypatch.setattr(Folder, "create", create)
    assert away
    asked = teacher.requests
    assert asked == teacher.answered
    run.audit(check=False)
    chunks = run.folder.round(0).chunks.manifest.rows
    assert teacher.requests == chunks, "nothing is asked for twice"
    assert len(run.folder.round(0).rollouts.read()) == 2 * chunks


def test_a_second_machine_is_refused_before_it_samples_or_asks(mirrored, teacher, mirror_url, tmp_path):
    run = mirrored()
    run.generate(check=False)
    pull(mirror_url, tmp_path / "second")
    run.audit(check=False)
    asked = teacher.requests
    done = Command("audit", tmp_path / "second", "--no-check").wait()
    assert (done.returncode, teacher.requests) == (3, asked)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("omniopd: ")
    assert "so this one is refused" in last


@FOLDER
def test_whole_runs_go_on_from_the_mirror_and_push_what_was_left(mirrored, teacher, mirror_url, tmp_path):
    run = mirrored()
    run.run(1, check=False, say=lambda line: None)
    shutil.rmtree(run.folder.path)
    pull(mirror_url, run.folder.path)
    policy = run.run(2, check=False, say=lambda line: None)
    assert policy.name == "policy"
    before = index_of(mirror_url)
    assert f"round=001/policy/{next(policy.glob('*.safetensors')).name}" in before.files
    (run.folder.path / "note.txt").write_text("what an evaluation leaves, say")
    run.run(2, check=False, say=lambda line: None)
    assert "note.txt" in index_of(mirror_url).files


def test_missing_credentials_are_one_line_before_anything_is_sampled(make_run, s3, monkeypatch):
    run = make_run(run={"mirror": s3})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    done = Command("generate", run.path, "--no-check").wait()
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1), done.stderr
    assert "no credentials are set" in done.stderr
    assert not run.round(0).path.exists()


def test_a_pull_into_a_run_that_exists_is_one_line(make_run, tmp_path):
    done = Command("pull", tmp_path / "mirror", make_run().path).wait()
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 1)
    assert "exists" in done.stderr


def test_studies_leave_the_mirror_of_their_base_alone(make_run):
    base = make_run(run={"mirror": "/elsewhere"}).config()
    assert "mirror" not in json.dumps(arm_values(base, Arm("a", {}, ""), 0).get("run", {}))
