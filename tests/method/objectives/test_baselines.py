"""The paper's baselines from the prompts to the training sequences: sft, opd and grpo beside omniopd."""

import collections
import itertools
import json
import os
import signal

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoTokenizer

from omniopd.demo.tasks.sums import problems
from omniopd.stages.audit.stage import audit
from omniopd.stages.generate.stage import generate
from omniopd.stages.score.rewards import _whole_groups
from omniopd.stages.score.stage import score
from omniopd.store.errors import BudgetReached, ConfigError, InputError, TableError
from omniopd.store.ledger import NANO
from omniopd.store.ledger_read import read_totals
from omniopd.store.model import end_of_turn
from omniopd.store.sections import DataConfig
from omniopd.view.inspect import Selection, inspect
from omniopd.view.report.build import write_report
from omniopd.view.sql import query
from omniopd.view.status import read_status
from support.processes import Command
from support.questions import read_problems
from support.tables import newest

ANSWER = "27+58=85\n85-14=71\n#### 71"


@pytest.fixture
def make(make_run, teacher, tmp_path):
    """A run of one objective, with answers beside its questions."""

    def make(objective, questions=6, **sections):
        run = make_run(name=objective, questions=questions, **sections)
        given = problems(questions, seed=5, split="train")
        prompts = tmp_path / f"{objective}.jsonl"
        prompts.write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in given))
        run.config_toml.write_text(
            run.config_toml.read_text()
            .replace("[train]", f'[train]\nobjective = "{objective}"')
            .replace('"http://127.0.0.1:9/v1"', json.dumps(teacher.base_url))
            .replace("max_tokens = 12\n", "")
            .replace("[data]", '[data]\nanswer = "answer"')
        )
        return run

    return make


def replies(teacher, *choices):
    """The teacher gives these (text, finish reason) to every prompt, in turn."""

    def behave(body, number):
        shown = [choices[i % len(choices)] for i in range(body["n"])]
        answers = [{"index": i, "text": text, "finish_reason": end} for i, (text, end) in enumerate(shown)]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": sum(len(text) for text, _ in shown)}
        teacher.answered += 1
        return web.json_response({"model": body["model"], "choices": answers, "usage": usage})

    teacher.behave = behave


def stages(run, *overrides):
    config = run.config(overrides)
    return [stage(run, 0, config) for stage in (generate, audit, score)]


def rows(table):
    return table.read().to_pylist()


# -- sft


def test_sft_asks_for_whole_answers_and_makes_sequences_of_the_usable_ones(make, teacher, student):
    texts = [(ANSWER, "stop"), (f" {ANSWER}\n", "length"), ("", "stop"), ("no", "content_filter")]
    replies(teacher, *texts)
    run = make("sft")
    said = stages(run, "teacher.price={input=1.0, output=5.0}")
    trajectories = {row["trajectory_id"]: row for row in rows(run.round(0).trajectories)}
    assert len(trajectories) == 6
    assert {(t["response_text"], *t["response_ids"], t["finish_reason"]) for t in trajectories.values()} == {
        ("", "none")
    }
    assert sorted(body["prompt"] for body in teacher.bodies) == sorted(t["prompt_text"] for t in trajectories.values())
    assert {(body["n"], body["max_tokens"]) for body in teacher.bodies} == {(4, 56)}, "generate.max_new_tokens"
    totals, rollouts = read_totals(run.ledger), rows(run.round(0).rollouts)
    assert totals.requests == 6
    assert sum(row["cost_usd"] for row in rollouts) * NANO == pytest.approx(totals.charged_nusd, abs=6)
    assert collections.Counter(row["status"] for row in rollouts) == {"ok": 12, "empty": 6, "filtered": 6}

    tokenizer = AutoTokenizer.from_pretrained(student)
    shards = rows(run.round(0).shards)
    keys = [(row["trajectory_id"], row["rollout_index"]) for row in shards]
    assert sorted(keys) == sorted((id_, i) for id_ in trajectories for i in (0, 1))
    for shard in shards:
        prompt = trajectories[shard["trajectory_id"]]["prompt_ids"]
        text, end = texts[shard["rollout_index"]]
        answer = shard["input_ids"][len(prompt) :]
        assert shard["input_ids"][: len(prompt)] == prompt
        if end == "stop":
            assert answer.pop() == tokenizer.eos_token_id
        assert tokenizer.decode(answer) == text, "whitespace at both ends is the teacher's own"
        on = [False] * len(prompt) + [True] * (len(shard["input_ids"]) - len(prompt))
        assert shard["audited"] == shard["response_mask"] == on
        assert shard["loss_weight"] == [float(is_on) for is_on in on]
        assert set(shard["behaviour_logprobs"]) == {0.0}
    assert said[0] == "6 prompts for the teacher to answer; the student is not sampled"
    assert said[1].startswith("6 prompts, 24 of 24 rollouts (6 empty, 6 filtered, 12 ok)")
    assert said[2] == ("12 answers (12 of 24 without a text left out), 50% ended by themselves; 12 training sequences")


def test_sft_loads_no_engine_and_has_one_trajectory_a_prompt_whatever_the_samples(make, monkeypatch):
    monkeypatch.setattr("omniopd.stages.generate.stage.make_engine", None)
    run = make("sft")
    generate(run, 0, run.config(("generate.samples_per_prompt=4", "generate.part_rows=4")))
    assert (run.round(0).trajectories.manifest.rows, len(run.round(0).trajectories.manifest.parts)) == (6, 2)


def test_an_sft_budget_is_kept_and_what_was_paid_for_is_trained_on(make, teacher):
    replies(teacher, (ANSWER, "stop"))
    run = make("sft")
    generate(run, 0, run.config())
    with pytest.raises(BudgetReached, match=r"The \d prompts are left out"):
        audit(run, 0, run.config(("teacher.budget_tokens=700",)))
    totals = read_totals(run.ledger)
    assert 0 < totals.charged_tokens <= 700
    assert totals.reserved_tokens == 0
    answers = len(rows(run.round(0).rollouts))
    assert 0 < answers == 4 * teacher.answered < 24
    assert f"{answers} answers, 100% ended" in score(run, 0, run.config())
    assert run.round(0).shards.manifest.rows == answers
    # The budget is raised: only what is missing is asked for, and the shards follow.
    audit(run, 0, run.config())
    score(run, 0, run.config())
    assert (teacher.requests, run.round(0).shards.manifest.rows) == (6, 24)


def test_an_sft_audit_that_was_killed_asks_for_no_answer_twice(make, teacher):
    run = make("sft", questions=12, teacher={"max_concurrency": 1})
    generate(run, 0, run.config())

    def behave(body, number):
        if number == 5:
            os.kill(process.pid, signal.SIGKILL)

    teacher.behave = behave
    process = Command("audit", run.path, "--no-check")
    assert process.wait().returncode == -signal.SIGKILL
    teacher.behave = lambda body, number: None
    audit(run, 0, run.config())
    answers = collections.Counter(row["chunk_id"] for row in rows(run.round(0).rollouts))
    assert (len(answers), set(answers.values())) == (12, {4})
    totals = read_totals(run.ledger)
    # The one that the server was working on may have been done: it is charged in full and asked again.
    assert (teacher.requests, totals.requests, totals.unknown, totals.reserved_tokens) == (13, 13, 1, 0)
    table = run.round(0).rollouts.read(["prompt_tokens", "completion_tokens"])
    spent = sum(table["prompt_tokens"].to_pylist()) + sum(table["completion_tokens"].to_pylist())
    assert spent == totals.prompt_tokens + totals.completion_tokens


def test_an_answer_ends_as_the_chat_template_ends_a_turn(student, tmp_path, make_run):
    tokenizer = AutoTokenizer.from_pretrained(student)
    config = make_run().config(("generate.stop_token_ids=[5, 7]",))
    assert end_of_turn(student, tokenizer, config) == tokenizer.eos_token_id
    end = tokenizer.convert_ids_to_tokens(7)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}" + end + "{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    assert end_of_turn(student, tokenizer, config) == 7
    assert end_of_turn(student, tokenizer, make_run("off").config(("data.chat_template=off",))) == (
        tokenizer.eos_token_id
    )


# -- opd and grpo


@pytest.mark.parametrize("objective", ["opd", "grpo"])
def test_opd_and_grpo_ask_no_teacher_and_need_none(make, teacher, objective):
    run = make(objective)
    said = stages(run, "teacher.model=", "train.teacher=x", "generate.samples_per_prompt=2", "score.grader=dapo_regex")
    assert said[1] == f"{objective}: no teacher is asked"
    assert (teacher.requests, run.ledger.exists()) == (0, False)
    round_ = run.round(0)
    assert round_.chunks.complete
    assert round_.rollouts.complete
    assert (round_.chunks.manifest.rows, round_.rollouts.manifest.rows) == (0, 0)


def test_opd_has_the_whole_response_to_compare_and_nothing_weighed(make):
    run = make("opd")
    said = stages(run, "train.teacher=x")
    trajectories = {row["trajectory_id"]: row for row in rows(run.round(0).trajectories)}
    shards = rows(run.round(0).shards)
    assert len(shards) == len(trajectories) == 6
    for shard in shards:
        own = trajectories[shard["trajectory_id"]]
        prompt = len(own["prompt_ids"])
        assert shard["input_ids"] == own["prompt_ids"] + own["response_ids"]
        assert shard["response_mask"] == [False] * prompt + [True] * len(own["response_ids"])
        assert not any(shard["audited"])
        assert set(shard["loss_weight"]) == {0.0}
        assert shard["rollout_index"] is None
    tokens = sum(len(row["response_ids"]) for row in trajectories.values())
    assert (
        said[2]
        == f"{tokens:,} tokens of the student's to be held against the teacher's distribution; 6 training sequences"
    )


def right(text, answer):
    return text.rpartition("#### ")[2].strip() == answer


@pytest.fixture
def demo_grader(monkeypatch):
    """Grades by the demo's own last line; math-verify would start a process."""
    from omniopd.graders.dapo_regex import DapoRegex
    from omniopd.graders.verdict import Verdict

    def grade(self, response, reference):
        return Verdict(right(response, reference), "right" if right(response, reference) else "wrong", response[-3:])

    monkeypatch.setattr(DapoRegex, "grade", grade)
    return "score.grader=dapo_regex"


def test_grpo_rewards_are_normalised_within_a_prompt_and_weigh_the_whole_response(make, demo_grader, monkeypatch):
    monkeypatch.setattr("omniopd.stages.score.rewards._RESPONSES_A_PART", 5)  # no multiple of the samples
    run = make("grpo", questions=8)
    said = stages(run, "generate.samples_per_prompt=4", demo_grader)
    trajectories = {row["trajectory_id"]: row for row in rows(run.round(0).trajectories)}
    assert {t["question"].strip(): t["answer"] for t in trajectories.values()} == {
        p.question: str(p.answer) for p in problems(8, seed=5, split="train")
    }
    rewards = {row["trajectory_id"]: row for row in rows(run.round(0).rewards)}
    assert rewards.keys() == trajectories.keys()
    groups = collections.defaultdict(list)
    for id_, row in rewards.items():
        assert row["reward"] == float(right(trajectories[id_]["response_text"], trajectories[id_]["answer"]))
        groups[trajectories[id_]["prompt_id"]].append(id_)
    mixed = 0
    for own in groups.values():
        reward = np.array([rewards[id_]["reward"] for id_ in own], dtype=np.float64)
        assert len(own) == 4
        mixed += len(set(reward)) > 1
        expected = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-4)
        assert [rewards[id_]["advantage"] for id_ in own] == pytest.approx(expected.tolist(), abs=1e-5)
    assert 0 < mixed < 8, "else the test shows nothing"
    for shard in rows(run.round(0).shards):
        own = trajectories[shard["trajectory_id"]]
        prompt, length = len(own["prompt_ids"]), len(own["response_ids"])
        assert shard["audited"] == shard["response_mask"] == [False] * prompt + [True] * length
        advantage = rewards[shard["trajectory_id"]]["advantage"]
        assert shard["loss_weight"] == pytest.approx([0.0] * prompt + [advantage] * length)
        assert shard["behaviour_logprobs"][prompt:] == own["logprobs"]
        assert shard["rollout_index"] is None
    mean = np.mean([row["reward"] for row in rewards.values()])
    assert said[2] == (
        f"mean reward {mean:.3f} by dapo_regex, {mixed / 8:.0%} of 8 groups carry signal; 32 training sequences"
    )
    before = run.round(0).rewards.manifest
    score(run, 0, run.config(("generate.samples_per_prompt=4", demo_grader)))
    assert run.round(0).rewards.manifest == before, "graded once"


@given(st.lists(st.integers(1, 6), min_size=1, max_size=8), st.integers(1, 7))
def test_the_samples_of_a_prompt_are_graded_together_whatever_a_part_holds(sizes, part):
    prompts = [f"p{group}" for group, size in enumerate(sizes) for _ in range(size)]
    responses = pa.table({"trajectory_id": [f"t{i:02}" for i in range(len(prompts))], "prompt_id": prompts})  # noqa: F841
    with duckdb.connect() as db, pytest.MonkeyPatch.context() as patch:
        patch.setattr("omniopd.stages.score.rewards._RESPONSES_A_PART", part)
        db.execute(
            "CREATE TABLE trajectories AS SELECT *, 0 AS round, '' AS response_text, '' AS answer FROM responses"
        )
        found = [whole["prompt_id"].to_pylist() for whole in _whole_groups(db)]
    assert [prompt for own in found for prompt in own] == prompts
    assert all(a[-1] != b[0] for a, b in itertools.pairwise(found))


def test_a_trajectory_without_a_reward_is_found(make, demo_grader):
    run = make("grpo", questions=2)
    stages(run, "generate.samples_per_prompt=2", demo_grader)
    rewards = run.round(0).rewards
    rewards.replace([rewards.read().slice(1)], rewards.manifest.made_with)
    with pytest.raises(TableError, match="1 trajectories without exactly one reward"):
        score(run, 0, run.config(("generate.samples_per_prompt=2", demo_grader)))


def test_math_verify_grades_by_value(make):
    pytest.importorskip("math_verify")
    run = make("grpo", questions=2)
    assert "by math_verify" in stages(run, "generate.samples_per_prompt=2")[2]
    assert {row["grader"] for row in rows(run.round(0).rewards)} == {"math_verify"}


@pytest.mark.parametrize(
    ("rows_", "overrides", "message"),
    [
        ([{"question": "1+1"}], ("data.answer=solution",), r"no column 'solution'.*data\.answer"),
        ([{"question": "1+1", "answer": "2"}], ("generate.samples_per_prompt=1",), r"samples_per_prompt is 1"),
        ([{"question": "1+1", "answer": "2"}, {"question": "1+2", "answer": None}], (), "1 questions .* is '1[+]2'"),
        ([{"question": "1+1", "answer": {"a": "2"}}], ("data.answer=answer.b",), r"no 'answer\.b'.*data\.answer"),
    ],
)
def test_grpo_without_something_to_compare_is_refused_before_sampling(make, monkeypatch, rows_, overrides, message):
    monkeypatch.setattr("omniopd.stages.generate.stage.make_engine", None)
    run = make("grpo")
    (run.path.parent / "grpo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    with pytest.raises(InputError, match=message):
        generate(run, 0, run.config(("generate.samples_per_prompt=2", *overrides)))


def test_grpo_needs_answers(make):
    run = make("grpo")
    text = run.config_toml.read_text().replace('answer = "answer"', "")
    run.config_toml.write_text(text)
    with pytest.raises(InputError, match=r"Set data\.answer"):
        generate(run, 0, run.config(("generate.samples_per_prompt=2",)))


def test_the_first_answer_of_a_question_counts_and_tests_are_json(tmp_path):
    path = tmp_path / "p.jsonl"
    given = [
        {"question": "a", "meta": {"answer": "1", "tests": {"inputs": ["x"], "outputs": ["y"]}}},
        {"question": "a", "meta": {"answer": "2", "tests": {"inputs": ["z"], "outputs": ["y"]}}},
        {"question": "b", "meta": {"answer": None, "tests": None}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    assert read_problems(DataConfig(prompts=str(path), answer="meta.answer")) == {"a": "1", "b": ""}
    tests = read_problems(DataConfig(prompts=str(path), answer="meta.tests"))["a"]
    assert json.loads(tests) == {"inputs": ["x"], "outputs": ["y"]}
    assert read_problems(DataConfig(prompts=str(path))) == {"a": "", "b": ""}


# -- settings, tables that contradict each other, and older tables


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.objective=opd",), r"train\.teacher is not set"),
        (("train.objective=sft", "teacher.rollouts=adaptive"), r"Set teacher\.rollouts to the number of answers"),
        *(
            ((f"train.objective={name}", "train.teacher=x", "score.weights=constant"), "is the control of omniopd")
            for name in ("sft", "opd", "grpo")
        ),
        (("train.objective=sft", "teacher.model="), r"teacher\.model is not set"),
    ],
)
def test_settings_without_a_meaning_for_the_objective_are_refused(make_run, overrides, message):
    run = make_run()
    with pytest.raises(ConfigError, match=message):
        run.config(overrides)


def test_tables_of_another_objective_are_refused(make, teacher):
    run = make("sft")
    stages(run)
    with pytest.raises(TableError, match="chunks, which only omniopd, sft and draft have"):
        score(run, 0, run.config(("train.objective=opd", "train.teacher=x")))
    with pytest.raises(TableError, match="chunks that reach outside their response"):
        score(run, 0, run.config(("train.objective=omniopd",)))
    shards = run.round(0).shards
    kept = shards.read()
    moved = kept.set_column(1, "input_ids", [[ids[1:] + ids[:1] for ids in kept["input_ids"].to_pylist()]])
    for damaged, message in (
        (kept.slice(1), "1 answers without exactly one shard"),
        (moved, "do not begin with their"),
    ):
        shards.replace([damaged], shards.manifest.made_with)
        with pytest.raises(TableError, match=message):
            score(run, 0, run.config())


def test_tables_of_an_older_version_read_with_nulls(make, demo_grader):
    run = make("grpo", questions=2)
    stages(run, "generate.samples_per_prompt=2", demo_grader)
    for table, column in ((run.round(0).trajectories, "answer"), (run.round(0).shards, "rollout_index")):
        without = []
        for path in table.files():
            pq.write_table(pq.read_table(path).drop_columns([column]), path)
            without.append(path)
        manifest = newest(table.folder)
        content = json.loads(manifest.read_text())
        for part, path in zip(content["parts"], without, strict=True):
            part["bytes"] = path.stat().st_size
            part["sha256"] = _sha256(path)
        manifest.write_text(json.dumps(content))
    assert "NULL" in query(run, "SELECT answer FROM trajectories")
    assert "NULL" in query(run, "SELECT rollout_index FROM shards")
    with pytest.raises(TableError, match="4 trajectories without an answer"):
        score(run, 0, run.config(("generate.samples_per_prompt=2", demo_grader)))


def _sha256(path):
    from omniopd.store import files

    return files.sha256(path)


def test_surprisal_audits_around_the_tokens_that_were_least_likely(make_run):
    run = make_run(score={"weights": "constant"}, select={"strategy": "surprisal", "chunks": 1})
    generate(run, 0, run.config())
    audit(run, 0, run.config())
    trajectories = {row["trajectory_id"]: row for row in rows(run.round(0).trajectories)}
    for chunk in rows(run.round(0).chunks):
        own = trajectories[chunk["trajectory_id"]]
        spoken = len(own["response_ids"]) - (own["finish_reason"] == "stop")
        assert chunk["anchor"] == int(np.argmin(own["logprobs"][:spoken]))
        assert chunk["anchor_entropy"] == own["entropies"][chunk["anchor"]]


# -- views


@pytest.mark.parametrize("objective", ["sft", "opd", "grpo"])
def test_every_view_reads_a_run_of_every_objective(make, teacher, demo_grader, objective, tmp_path):
    replies(teacher, (ANSWER, "stop"), (ANSWER, "stop"), ("#### 1", "length"), ("no", "content_filter"))
    run = make(objective)
    overrides = ("generate.samples_per_prompt=2", "train.teacher=x", demo_grader)
    stages(run, *overrides)
    config = run.config(overrides)
    (round_,) = read_status(run, config).rounds
    states = {stage.stage: (stage.state, stage.done, stage.expected) for stage in round_.stages}
    sequences = {"sft": 18, "opd": 12, "grpo": 12}[objective]
    assert states["audit"] == ("done", *((24, 24) if objective == "sft" else (0, 0)))
    assert states["score"] == ("done", sequences, sequences)
    assert (round_.cut_off is None) == (objective == "sft")
    console = Console(width=100, record=True)
    for table in ("trajectories", "chunks", "rewards", "shards"):
        for block in inspect(run, config, table, Selection()):
            console.print(block)
    shown = console.export_text()
    assert (" 2x" in shown and "85-14=71" in shown) == (objective == "sft")
    assert ("rewards: 1-3 of 12" in shown) == (objective == "grpo")
    page = tmp_path / f"{objective}.html"
    write_report(run, config, page, 100)
    text = page.read_text()
    assert ("reward-rounds" in text) == (objective == "grpo")
    assert "phi-rounds" not in text
    assert ("What the student writes" in text) == (objective != "sft")
