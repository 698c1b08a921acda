"""Studies on the shipped student with the real demo teacher: what arms share, and that nothing is asked twice."""

import json
import signal
import subprocess
import sys
import time
import urllib.request

import polars as pl
import pytest
from typer.testing import CliRunner

from omniopd.cli import app
from omniopd.demo.study import settings
from omniopd.demo.tasks.sums import problems
from omniopd.demo.tasks.task import SUMS
from omniopd.demo.teacher.process import TeacherServer
from omniopd.store.config import commented_toml
from omniopd.store.errors import ConfigChangedError, UsageError
from omniopd.store.ledger_read import read_totals
from omniopd.store.studies import StudyDir
from omniopd.study.arms import ablation_arms, sensitivity_arms
from omniopd.study.runner import StudyOptions, run_study

TIMES = ("generate_s", "audit_s", "score_s", "train_s")


@pytest.fixture(scope="module")
def base_url():
    with TeacherServer() as url:
        yield url


def requests_so_far(base_url):
    with urllib.request.urlopen(f"{base_url.removesuffix('/v1')}/stats", timeout=10) as answer:
        return json.loads(answer.read())["requests"]


@pytest.fixture
def make_study(tmp_path, base_url):
    """A study of 16 prompts a round, and 20 questions to evaluate on."""

    def make(name="study"):
        study = StudyDir(tmp_path / name)
        study.path.mkdir()
        for file, split, count in (("prompts", "train", 64), ("heldout", "heldout", 20)):
            rows = [{"question": p.question, "answer": str(p.answer)} for p in problems(count, seed=1, split=split)]
            (study.path / f"{file}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
        values = settings(SUMS, study.path / "prompts.jsonl", study.path / "heldout.jsonl")
        values["data"]["per_round"] = 16
        values["teacher"] |= {"base_url": base_url, "rollouts": 4}
        study.base.config_toml.write_text(commented_toml(values))
        return study

    return make


TWO_SEEDS, ONE_SEED = StudyOptions(seeds=2), StudyOptions(seeds=1)


def only(choice, *names):
    return [arm for arm in choice[0] if arm.name in names], choice[1]


def rows_of(study, kind):
    return pl.DataFrame(study.results(kind).read()).drop(*TIMES)


@pytest.mark.slow
def test_arms_that_differ_only_after_the_audit_ask_the_teacher_once(make_study, base_url):
    study = make_study()
    before, base = requests_so_far(base_url), study.base.config()
    choice = only(ablation_arms(base), "omniopd", "w/o Bayesian smoothing", "constant weights")
    said: list[str] = []
    text = run_study(study, "ablation", base, choice, TWO_SEEDS, said.append)
    reference, smoothing = (study.run(arm.folder, 0) for arm in choice[0][:2])
    asked = requests_so_far(base_url) - before
    assert asked == sum(study.run("omniopd", seed).round(0).chunks.manifest.rows for seed in (0, 1))
    assert read_totals(smoothing.ledger).requests == 0 < read_totals(reference.ledger).requests
    for table in ("trajectories", "chunks", "rollouts"):
        ours, theirs = (getattr(run.round(0), table).read() for run in (smoothing, reference))
        assert ours.equals(theirs), table
    rows = rows_of(study, "ablation")
    by_arm = {arm: rows.filter(pl.col("arm") == arm).sort("seed") for arm in rows["arm"].unique()}
    tokens = ["teacher_prompt_tokens", "teacher_completion_tokens"]
    assert by_arm["w/o Bayesian smoothing"].select(tokens).equals(by_arm["omniopd"].select(tokens))
    assert by_arm["w/o Bayesian smoothing"]["billed_tokens"].to_list() == [0, 0]
    assert (by_arm["omniopd"]["billed_tokens"] == by_arm["omniopd"].select(pl.sum_horizontal(tokens)).to_series()).all()
    assert by_arm["constant weights"]["teacher_completion_tokens"].to_list() == [0, 0]
    assert by_arm["student before"]["rounds"].to_list() == [0, 0]
    assert all(name in text for name in by_arm)
    assert (study.path / "ablation.md").read_text() in text
    assert (study.path / "ablation.png").read_bytes().startswith(b"\x89PNG")

    # Again, and as another kind of study: the reference arm is there, nothing is asked.
    trained = {path: path.stat().st_mtime_ns for path in study.path.glob("arms/*/*/round=*/policy/model.safetensors")}
    assert len(trained) == 6
    assert run_study(study, "ablation", base, choice, TWO_SEEDS, said.append) == text
    grid = sensitivity_arms(base, {"score.alpha": [0.0, 1.0]})
    assert [arm.folder for arm in grid[0]] == ["omniopd", "score.alpha=0"]
    run_study(study, "sensitivity", base, grid, TWO_SEEDS, said.append)
    assert {path: path.stat().st_mtime_ns for path in trained} == trained
    assert requests_so_far(base_url) - before == asked

    for change, key in (("train.lr=1", r"train\.lr"), ("eval.samples=2", r"eval\.samples")):
        with pytest.raises(ConfigChangedError, match=key):
            run_study(study, "ablation", study.base.config((change,)), choice, TWO_SEEDS, said.append)


def test_fewer_rollouts_are_the_first_ones_of_the_reference_arm_as_if_asked_alone(make_study):
    shared, alone = make_study("shared"), make_study("alone")
    base = shared.base.config(("teacher.price={ input = 3.0, output = 7.0 }",))
    choice = sensitivity_arms(base, {"teacher.rollouts": [2]})
    run_study(shared, "sensitivity", base, choice, ONE_SEED, lambda line: None)
    few = choice[0][1]
    run = shared.run(few.folder, 0)
    assert read_totals(run.ledger).requests == 0
    # The same arm where nobody has anything to lend: its own study's reference.
    its_own = alone.base.config(("teacher.price={ input = 3.0, output = 7.0 }", "teacher.rollouts=2"))
    its_own = its_own.model_copy(update={"data": base.data})
    run_study(alone, "sensitivity", its_own, sensitivity_arms(its_own, {"train.lr": []}), ONE_SEED,
              lambda line: None)  # fmt: skip
    columns = [
        "chunk_id", "rollout_index", "teacher", "status", "finish_reason", "prompt_tokens", "cached_tokens",
        "cache_write_tokens", "cost_usd", "continuation",
    ]  # fmt: skip
    tables = [one.run(arm, 0).round(0).rollouts for one, arm in ((shared, few.folder), (alone, "omniopd"))]
    ours, theirs = (pl.DataFrame(table.read()).sort("chunk_id", "rollout_index") for table in tables)
    assert tables[0].manifest.made_with == tables[1].manifest.made_with
    assert len(ours) == 2 * run.round(0).chunks.manifest.rows
    assert ours.select(columns[:-2]).equals(theirs.select(columns[:-2]))
    reference = pl.DataFrame(shared.run("omniopd", 0).round(0).rollouts.read()).filter(pl.col("rollout_index") < 2)
    assert ours["text"].to_list() == reference.sort("chunk_id", "rollout_index")["text"].to_list()
    assert ours["cost_usd"].sum() == pytest.approx(
        (3 * ours["prompt_tokens"].sum() + 7 * ours["completion_tokens"].sum()) / 1e6, abs=1e-7
    )


@pytest.mark.slow
def test_a_study_killed_in_the_middle_ends_with_the_same_table_and_asks_nothing_twice(make_study, base_url):
    calm, killed = make_study("calm"), make_study("killed")
    for study in (calm, killed):
        # The paths of prompts and benchmark are settings, and so part of what the tables are compared by.
        text = study.base.config_toml.read_text().replace(str(study.path), str(calm.path))
        study.base.config_toml.write_text(text)
    grid = sensitivity_arms(calm.base.config(), {"train.beta": [0]})
    before = requests_so_far(base_url)
    run_study(calm, "sensitivity", calm.base.config(), grid, TWO_SEEDS, lambda line: None)
    asked = requests_so_far(base_url) - before

    def command(jobs):
        options = ["--seeds", "2", "--set", "run.rounds=1", "--grid", "train.beta=0", "--jobs", str(jobs)]
        return [sys.executable, "-m", "omniopd", "study", "sensitivity", str(killed.path), *options]

    process = subprocess.Popen(command(jobs=2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not killed.run("omniopd", 0).round(0).policy.is_dir():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    # The workers end with whoever started them; until then the stage's lock is theirs.
    time.sleep(1)
    finished = subprocess.run(command(jobs=1), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "minus omniopd" in finished.stdout
    # What was in flight at the kill is billed in full, and asked again.
    ours, theirs = (rows_of(study, "sensitivity").drop("billed_tokens") for study in (killed, calm))
    assert ours.equals(theirs)
    assert (
        0 <= requests_so_far(base_url) - before - 2 * asked <= read_totals(killed.run("omniopd", 1).ledger).unknown
    ), "only what was in flight when the study was killed is asked again"


def test_a_grid_that_is_no_config_key_is_one_line(make_study):
    study = make_study()
    for grid, problem in (("score.alfa=1", "--grid score.alfa=1"), ("score.alpha=-1", "score.alpha")):
        result = CliRunner().invoke(app, ["study", "sensitivity", str(study.path), "--grid", grid])
        assert problem in str(result.exception)
        assert "\n" not in str(result.exception)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ('eval.graders=["tests"]', "not graded by 'tests'"),
        ("eval.benchmark=nowhere", "no benchmark"),
        ('eval.benchmark=""', "No benchmark"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_trained(make_study, change, problem):
    study = make_study()
    base = study.base.config((change,))
    with pytest.raises(UsageError, match=problem):
        run_study(study, "ablation", base, ablation_arms(base), TWO_SEEDS, lambda line: None)
    assert not (study.path / "arms").exists()


@pytest.mark.parametrize("command", ["compare", "ablation", "sensitivity"])
def test_evaluation_and_rounds_come_from_the_config_and_benchmark_is_short_for_a_key(make_study, monkeypatch, command):
    study, found = make_study(), []
    monkeypatch.setattr("omniopd.study.runner.run_study", lambda *args: found.append(args) or "")
    settings_ = ["--set", "eval.samples=3", "--set", "run.rounds=2", "--set", "eval.benchmark=aime24"]
    for options in ([], ["--benchmark", "aime25", "--seeds", "4", "--jobs", "2", "--curve"]):
        result = CliRunner().invoke(app, ["study", command, str(study.path), *settings_, *options])
        assert result.exit_code == 0, result.output
    bases = [base for _, _, base, *_ in found]
    assert [kind for _, kind, *_ in found] == [command] * 2
    assert [base.eval.benchmark for base in bases] == ["aime24", "aime25"]
    assert {(base.eval.samples, base.run.rounds, base.eval.max_new_tokens) for base in bases} == {
        (3, 2, SUMS.max_new_tokens)
    }
    assert [options for *_, options, _ in found] == [StudyOptions(), StudyOptions(4, 2, True)]


def test_the_study_commands_load_no_numerical_library_to_print_their_help():
    code = "import sys, omniopd.study.cli; sys.exit(bool({'numpy', 'pyarrow', 'polars', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
