"""draft from the prompts to the training sequences, and through a crash in the pass that verifies."""

import contextlib
import functools
import io
import math
import os
import re
import signal
import time
import tomllib

import numpy as np
import pytest
import torch
from aiohttp import web
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from omniopd.method.drafts import paying_length
from omniopd.run import run_rounds
from omniopd.stages.audit.draft_length import draft_tokens
from omniopd.stages.audit.stage import audit
from omniopd.stages.audit.teacher import max_tokens_for
from omniopd.stages.score.stage import score
from omniopd.store.config import commented_toml
from omniopd.store.errors import ConfigError, InputError
from omniopd.store.ledger_read import read_totals
from omniopd.store.reader import open_reader
from omniopd.train.metrics import MetricsLog
from omniopd.train.trainer import train_round
from omniopd.view.decoder import find_decoder
from omniopd.view.inspect import Selection, inspect
from omniopd.view.plan import describe, predict
from omniopd.view.report.build import write_report
from omniopd.view.report.explorer import marked, rollouts_of
from omniopd.view.sanitize import one_line
from omniopd.view.sql import query
from omniopd.view.status import read_status
from omniopd.view.status_text import lines, render
from support.processes import Command, finish
from support.runs import STUDENT

DRAFT = {"objective": "draft"}


@functools.cache
def reader():
    return AutoTokenizer.from_pretrained(STUDENT), AutoModelForCausalLM.from_pretrained(STUDENT).eval()


@functools.cache
def greedy(prompt):
    """What the student itself would go on with."""
    tokenizer, model = reader()
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=40, do_sample=False, pad_token_id=0)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


GOOD = lambda prompt: (greedy(prompt), "stop")  # noqa: E731
CUT = lambda prompt: (greedy(prompt)[:5], "length")  # noqa: E731
FOREIGN = lambda prompt: (greedy(prompt)[:3] + "%?%?" + greedy(prompt)[3:], "stop")  # noqa: E731


@pytest.fixture
def drafted(make_run, teacher, generated):
    """A run whose teacher goes on at every fork in these ways, in turn, with generate and audit done."""

    def make(*ways, name="run", questions=6, **sections):
        def behave(body, number):
            shown = [ways[i % len(ways)](body["prompt"]) for i in range(body["n"])]
            answers = [{"index": i, "text": text, "finish_reason": end} for i, (text, end) in enumerate(shown)]
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": sum(len(t) // 2 for t, _ in shown)}
            teacher.answered += 1
            return web.json_response({"model": body["model"], "choices": answers, "usage": usage})

        teacher.behave = behave
        sections["teacher"] = {"rollouts": len(ways), "base_url": teacher.base_url} | sections.get("teacher", {})
        sections["train"] = DRAFT | sections.get("train", {})
        run = make_run(name=name, questions=questions, **sections)
        generated(run)
        audit(run, 0, run.config())
        return run

    return make


def rows(table):
    return sorted(table.read().to_pylist(), key=lambda row: [str(row[name]) for name in table.spec.key])


def joined(run):
    """Each draft with its chunk and its trajectory."""
    round_ = run.round(0)
    trajectories = {row["trajectory_id"]: row for row in rows(round_.trajectories)}
    chunks = {row["chunk_id"]: row for row in rows(round_.chunks)}
    for draft in rows(round_.drafts):
        chunk = chunks[draft["chunk_id"]]
        yield draft, chunk, trajectories[chunk["trajectory_id"]]


def test_the_fork_is_the_earliest_peak_and_one_cool_draft_is_asked_for_at_each(drafted, teacher):
    run = drafted(GOOD, teacher={"max_tokens": 24})
    defaults = run.config()
    assert (defaults.select.keep, defaults.teacher.rollouts, defaults.teacher.temperature) == ("earliest", 1, 0.5)
    assert (defaults.train.epochs, defaults.train.beta) == (2, 0.0)
    assert run.round(0).chunks.manifest.rows == teacher.requests == 6
    assert {(body["n"], body["temperature"]) for body in teacher.bodies} == {(1, 0.5)}


def test_the_users_own_settings_stand_before_the_objectives_defaults(make_run):
    run = make_run(train=DRAFT | {"epochs": 7}, teacher={"rollouts": 3})
    config = run.config(("train.beta=0.25",))
    assert (config.train.epochs, config.teacher.rollouts, config.train.beta) == (7, 3, 0.25)
    assert (config.select.keep, config.teacher.temperature) == ("earliest", 0.5)
    assert run.config(("train.objective=omniopd",)).select.keep == "all"
    assert '# keep = "earliest"' in commented_toml({"train": DRAFT})
    assert '# keep = "all"' in commented_toml({})


@pytest.mark.parametrize("accept", ["min_p", "typical", "probability", "rank"])
def test_what_is_accepted_is_what_a_model_that_reads_token_by_token_accepts(drafted, accept):
    run = drafted(GOOD, FOREIGN, CUT, score={"accept": accept})
    if accept == "rank":
        run.config_toml.write_text(run.config_toml.read_text().replace("[score]", "[score]\naccept_threshold = 3"))
    score(run, 0, run.config())
    tokenizer, model = reader()
    shares = set()
    for draft, chunk, trajectory in joined(run):
        text, end = [GOOD, FOREIGN, CUT][draft["rollout_index"]](trajectory["prompt_text"] + chunk["prefix_text"])
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert draft["ids"] == (whole[:-1] if end == "length" else [*whole, tokenizer.eos_token_id])
        seen = trajectory["prompt_ids"] + trajectory["response_ids"][: chunk["start"]]
        expected, rejected = 0, False
        for at, id_ in enumerate(draft["ids"]):
            with torch.inference_mode():
                p_V = model(torch.tensor([seen])).logits[0, -1].double().softmax(-1)
            p, entropy = float(p_V[id_]), float(-(p_V * p_V.log()).sum())
            assert draft["logprobs"][at] == pytest.approx(math.log(p), abs=1e-4)
            assert draft["entropies"][at] == pytest.approx(entropy, abs=1e-4)
            assert draft["ranks"][at] == int((p_V > p_V[id_]).sum())
            rejected = (
                rejected
                or not {
                    "min_p": p >= 0.02 * float(p_V.max()),
                    "probability": p >= 0.02,
                    "typical": p >= min(0.02, math.sqrt(0.02) * math.exp(-entropy)),
                    "rank": int((p_V > p_V[id_]).sum()) < 3,
                }[accept]
            )
            expected += not rejected
            seen = [*seen, id_]
        assert draft["accepted"] == expected
        assert draft["reach"] == pytest.approx(math.exp(sum(draft["logprobs"]) / len(draft["ids"])), rel=1e-4)
        shares.add(expected / len(draft["ids"]))
    assert min(shares) < 0.5
    assert max(shares) == 1


def test_a_sequence_is_the_prompt_the_students_own_tokens_and_what_was_accepted(drafted):
    run = drafted(GOOD, CUT, lambda prompt: ("%?" + greedy(prompt), "stop"))
    said = score(run, 0, run.config())
    shards = {(row["chunk_id"], row["rollout_index"]): row for row in rows(run.round(0).shards)}
    kept = 0
    for draft, chunk, trajectory in joined(run):
        shard = shards.pop((draft["chunk_id"], draft["rollout_index"]), None)
        assert (shard is None) == (draft["accepted"] == 0)
        if shard is None:
            continue
        prompt, own, learned = len(trajectory["prompt_ids"]), chunk["start"], draft["accepted"]
        kept += learned
        assert shard["trajectory_id"] == trajectory["trajectory_id"]
        assert shard["input_ids"] == (
            trajectory["prompt_ids"] + trajectory["response_ids"][:own] + draft["ids"][:learned]
        )
        assert shard["response_mask"] == [False] * prompt + [True] * (own + learned)
        assert shard["audited"] == [False] * (prompt + own) + [True] * learned
        assert shard["loss_weight"] == pytest.approx([0.0] * (prompt + own) + [draft["consensus"]] * learned)
    assert not shards
    drafts = rows(run.round(0).drafts)
    tokens, rejected = sum(len(d["ids"]) for d in drafts), sum(d["accepted"] == 0 for d in drafts)
    assert rejected == 6
    assert f"18 drafts, 6 rejected at their first token: {kept} of {tokens} tokens accepted" in said
    assert "67% ended by themselves, mean consensus 0." in said


def test_a_teacher_that_never_ends_is_said_with_what_to_change(drafted):
    run = drafted(CUT)
    assert "none ended by itself (it learns no ending: raise teacher.max_tokens" in score(run, 0, run.config())
    assert all(len(draft["ids"]) == 4 for draft in rows(run.round(0).drafts)), "the last token may be half a word"


def test_a_round_of_drafts_trains_and_the_student_says_what_it_accepted_more_often(drafted):
    run = drafted(GOOD, train={"epochs": 6})
    score(run, 0, run.config())
    train_round(run, 0, run.config())
    steps = MetricsLog(run, 0).rows()
    assert all(step["loss"] == pytest.approx(step["audited_nll"], rel=1e-4) for step in steps), "c = 1 and beta = 0"
    assert steps[-1]["loss"] < 0.6 * steps[0]["loss"]


def test_another_criterion_judges_again_without_another_pass(drafted, monkeypatch):
    run = drafted(GOOD, CUT)
    score(run, 0, run.config())
    first = rows(run.round(0).drafts)
    monkeypatch.setattr("omniopd.stages.likelihood.Student", None)
    milder = run.config(("score.accept_threshold=1e-30",))
    score(run, 0, milder)
    assert [d["accepted"] for d in rows(run.round(0).drafts)] == [len(d["ids"]) for d in first]
    score(run, 0, run.config())
    assert rows(run.round(0).drafts) == first


def test_a_pass_that_was_killed_goes_on_and_ends_in_the_same_bits(drafted):
    def quick(prompt):
        return f"{len(prompt)}=5\n5+1", "stop"

    mild = {"accept_threshold": 1e-30}
    calm, killed = (drafted(quick, quick, name=name, questions=200, score=mild) for name in ("calm", "killed"))
    score(calm, 0, calm.config())
    table = killed.round(0).drafts
    process = Command("score", killed.path)
    deadline = time.monotonic() + 120
    while not table.manifest.rows:
        assert process.running
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    begun = table.manifest.parts
    assert 0 < len(begun) < 4
    finish("score", killed.path)
    assert table.manifest.parts[: len(begun)] == begun, "committed parts are not written again"
    assert [p.sha256 for p in table.manifest.parts] == [p.sha256 for p in calm.round(0).drafts.manifest.parts]
    assert rows(killed.round(0).shards) == rows(calm.round(0).shards)


@pytest.mark.parametrize(
    ("choices", "sections", "message", "hint"),
    [
        (
            [lambda prompt: ("", "stop")],
            {},
            "teacher wrote nothing that the student could learn: 0 drafts",
            "teacher.max_tokens",
        ),
        ([lambda prompt: ("5", "length")], {}, "6 drafts, none with a token of it", "teacher.max_tokens"),
        ([GOOD], {"score": {"accept_threshold": 1.5}}, "rejects all 6 drafts at their first", "milder"),
    ],
)
def test_a_round_without_a_token_to_learn_is_refused_before_it_is_trained_on(drafted, choices, sections, message, hint):
    run = drafted(*choices, **sections)
    with pytest.raises(InputError, match=message) as caught:
        score(run, 0, run.config())
    assert hint in caught.value.hint
    assert run.round(0).rollouts.complete


def test_a_fork_at_the_first_token_is_a_whole_answer(drafted):
    run = drafted(GOOD, select={"chunks": 30})
    score(run, 0, run.config())
    found = [(d, c, t) for d, c, t in joined(run) if c["start"] == 0]
    assert found
    shards = {row["chunk_id"]: row for row in rows(run.round(0).shards)}
    for draft, chunk, trajectory in found:
        if draft["accepted"]:
            prompt = trajectory["prompt_ids"]
            assert shards[chunk["chunk_id"]]["input_ids"] == prompt + draft["ids"][: draft["accepted"]]


@pytest.mark.parametrize(
    ("override", "message"),
    [("teacher.rollouts=adaptive", "draft learns from the drafts"), ("score.weights=constant", "control of omniopd")],
)
def test_settings_that_mean_nothing_to_it_are_refused(make_run, override, message):
    with pytest.raises(ConfigError, match=message):
        make_run(train=DRAFT).config((override,))


def test_the_first_drafts_may_be_whole_and_later_ones_are_as_long_as_paid(drafted, teacher):
    run = drafted(GOOD, lambda prompt: ("%?" + greedy(prompt), "stop"), teacher={"max_tokens": None})
    assert {body["max_tokens"] for body in teacher.bodies} == {56}, "generate.max_new_tokens"
    score(run, 0, run.config())
    tokens = {(r["chunk_id"], r["rollout_index"]): r for r in rows(run.round(0).rollouts)}
    paid = [tokens[d["chunk_id"], d["rollout_index"]] for d in rows(run.round(0).drafts)]
    drafted_D = np.array([row["completion_tokens"] for row in paid])
    shares = [d["accepted"] / len(d["ids"]) for d in rows(run.round(0).drafts)]
    prompt = np.mean([row["prompt_tokens"] for row in paid])
    assert draft_tokens(run, 1, run.config()) == paying_length(shares * drafted_D, drafted_D, prompt)
    priced = run.config(("teacher.price={input = 1.0, output = 5.0}",))
    assert draft_tokens(run, 1, priced) == paying_length(shares * drafted_D, drafted_D, prompt / 5)
    assert draft_tokens(run, 0, run.config()) is None, "only rounds before it count"
    assert draft_tokens(run, 1, run.config(("train.objective=omniopd",))) is None


@pytest.mark.parametrize(
    ("overrides", "paying", "wanted"),
    [
        ((), None, 56),
        ((), 30, 30),
        ((), 400, 56),
        (("teacher.max_tokens=20",), 30, 20),
        (("teacher.draft_tokens=40",), 30, 40),
        (("teacher.draft_tokens=40", "teacher.max_tokens=20"), None, 20),
    ],
)
def test_a_draft_is_asked_for_at_the_length_that_pays_and_never_longer_than_the_cap(
    make_run, overrides, paying, wanted
):
    config = make_run(train=DRAFT, teacher={"max_tokens": None}).config(overrides)
    assert max_tokens_for(config, 6, paying) == wanted


def test_status_sql_and_inspect_show_how_far_the_student_follows_and_where_it_stops(drafted):
    run = drafted(GOOD, FOREIGN, questions=2)
    assert read_status(run, run.config()).rounds[0].accepted is None
    score(run, 0, run.config())
    drafts = rows(run.round(0).drafts)
    tokens, accepted = sum(len(d["ids"]) for d in drafts), sum(d["accepted"] for d in drafts)
    status = read_status(run, run.config())
    assert status.rounds[0].accepted == pytest.approx(accepted / tokens)
    assert (status.rounds[0].stages[2].done, status.rounds[0].stages[2].expected) == (4, 4)
    assert ("drafts", f"{accepted / tokens:.1%} of their tokens accepted in the last round") in lines(status)
    assert str(accepted) in query(run, "SELECT sum(accepted) AS a FROM chunks_scored")

    console = Console(width=400, record=True, file=io.StringIO())
    for block in inspect(run, run.config(), "chunks", Selection()):
        console.print(block)
    shown = console.export_text()
    for draft, chunk, trajectory in joined(run):
        text, _ = [GOOD, FOREIGN][draft["rollout_index"]](trajectory["prompt_text"] + chunk["prefix_text"])
        assert f"{draft['accepted']}/{len(draft['ids'])} accepted" in shown
        if draft["accepted"] < len(draft["ids"]):
            learned = reader()[0].decode(draft["ids"][: draft["accepted"]])
            assert text.startswith(learned)
            assert one_line(learned) + " ✂ " + one_line(text[len(learned) :]) in shown

    with contextlib.closing(open_reader(run)) as db:
        ids = [draft["chunk_id"] for draft in drafts]
        cut = [
            marked({"start": 0, "end": 1}, row)
            for own in rollouts_of(db, ids, find_decoder(run, run.config())).values()
            for row in own
        ]
    kept = {(piece[0][0], round(piece[1], 3)) for piece in ((row["parts"], row["share"]) for row in cut)}
    assert kept == {
        ((reader()[0].decode(d["ids"][: d["accepted"]], skip_special_tokens=True), "same"),
         round(d["accepted"] / len(d["ids"]), 3)) for d in drafts
    }  # fmt: skip
    write_report(run, run.config(), run.report, 10)
    assert "Accepted of the drafts" in run.report.read_text()


def test_a_run_may_begin_with_other_objectives_under_one_budget(make_run, teacher):
    """A cold start with sft, then draft: each round has its objective's own defaults, and the keys of its phase."""
    run = make_run(questions=8, train=DRAFT, teacher={"base_url": teacher.base_url, "rollouts": None})
    run.config_toml.write_text(
        run.config_toml.read_text()
        + '[run]\nrounds = 2\nschedule = [{ objective = "sft", set = { teacher.rollouts = 2, train.epochs = 1 } }]\n'
    )
    config = run.config(("data.per_round=4", "score.accept_threshold=1e-30"))
    assert [config.of_round(index).train.objective for index in range(3)] == ["sft", "draft", "draft"]
    assert config.first_rounds == [0, 1]
    cold, later = config.of_round(0), config.of_round(1)
    assert (cold.select.keep, cold.teacher.rollouts, cold.train.epochs, cold.train.beta) == ("all", 2, 1, 0.1)
    assert (later.select.keep, later.teacher.rollouts, later.train.epochs, later.train.beta) == ("earliest", 1, 2, 0.0)
    assert cold.of_round(0) == cold
    assert cold.data == later.data == config.data

    said = []
    overrides = ["data.per_round=4", "score.accept_threshold=1e-30"]
    run_rounds(run, config, overrides, said.append)
    assert [run.round(k).shards.manifest.made_with["train.objective"] for k in range(2)] == ["sft", "draft"]
    assert run.round(0).rollouts.manifest.rows == 8
    assert run.round(1).rollouts.manifest.rows == 4
    assert read_totals(run.ledger).requests == 8, "one ledger"
    status = read_status(run, config)
    assert [round_.objective for round_ in status.rounds] == ["sft", "draft"]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(status))
    assert re.search(r"0\s+sft .*\n\s*1\s+draft ", console.export_text())


def test_plan_counts_a_fork_a_trajectory_and_the_longest_draft(make_run):
    config = make_run(train=DRAFT, teacher={"max_tokens": None}).config(("teacher.rollouts=2",))
    found = predict(config, 10, 20.0, 40.0)
    assert (found.shape.chunks, found.shape.max_tokens) == (10, 10 * 56)
    assert "2 of at most 56 tokens at each of 10 forks" in describe(found, config)
    assert predict(config, 10, 20.0, 40.0, paying=30).shape.max_tokens == 10 * 30


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ('[{ objective = "copy" }]', "train.objective"),
        ('[{ objective = "opd" }]', "train.teacher is not set"),
        ('[{ objective = "sft", rounds = 0 }]', "run.schedule"),
        ('[{ objective = "sft", set = { teacher.rolouts = 2 } }]', "teacher.rolouts"),
    ],
)
def test_a_schedule_that_cannot_work_is_refused_before_the_first_round(make_run, schedule, message):
    run = make_run()
    run.config_toml.write_text(run.config_toml.read_text() + f"[run]\nschedule = {schedule}\n")
    with pytest.raises(ConfigError, match=re.escape(message)):
        run.config()


def test_a_schedule_is_written_as_toml():
    phases = [{"objective": "sft", "rounds": 2, "set": {"teacher": {"rollouts": 4}}}]
    text = commented_toml({"run": {"schedule": phases}})
    assert tomllib.loads(text)["run"]["schedule"] == phases
