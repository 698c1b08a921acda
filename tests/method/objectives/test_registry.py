"""An objective that no stage has heard of, described here alone, goes from prompts to a policy."""

import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from omniopd.method.objectives.record import Objective, Spans, shown_of_all
from omniopd.method.objectives.registry import get, names, register
from omniopd.stages.audit.stage import audit
from omniopd.stages.generate.stage import generate
from omniopd.stages.score.stage import score
from omniopd.store.config import made_with
from omniopd.store.errors import ConfigError
from omniopd.store.model import weights_hash
from omniopd.store.objectives import REGISTERED, Refusal
from omniopd.store.sections import TrainConfig
from omniopd.train import objective as loss
from omniopd.train.metrics import MetricsLog
from omniopd.train.trainer import train_round
from omniopd.train.weights import BatchFacts
from omniopd.view.plan import describe, predict
from omniopd.view.report.build import write_report
from omniopd.view.status import read_status

COPY = Objective(
    name="copy",
    required=("teacher.model",),
    refused=(Refusal("score.weights", "constant", "copy weighs by copies.", 'Set score.weights = "teacher".'),),
    asks="chunks",
    learns=Spans(
        'SELECT DISTINCT trajectory_id, start, "end", 1 AS weight'
        " FROM chunks JOIN rollouts USING (chunk_id) WHERE text = chunk_text"
    ),
    summary_sql="SELECT count(DISTINCT chunk_id) FROM chunks JOIN rollouts USING (chunk_id) WHERE text = chunk_text",
    summary=lambda row, score: f"{row[0]} chunks that the teacher wrote too",
    shown=shown_of_all,
)
"""Likelihood of the chunks that the teacher wrote in the same words at least once."""
NO_FACTS = BatchFacts(0, 0, 0, 0.0, 0.0, 1)


@pytest.fixture
def copy(monkeypatch):
    monkeypatch.setattr(loss, "_TERMS", dict(loss._TERMS))
    loss.terms_for("copy")(lambda train, facts, on_policy: loss.LossTerms())
    register(COPY)
    yield
    del REGISTERED["copy"]


def copies_first_chunks(teacher, round_):
    """The second rollout of each trajectory's chunk of the highest entropy is that chunk; all others are noise."""

    def behave(body, number):
        prompts = {t["trajectory_id"]: t["prompt_text"] for t in round_.trajectories.read().to_pylist()}
        first = {
            prompts[chunk["trajectory_id"]] + chunk["prefix_text"]: chunk["chunk_text"]
            for chunk in round_.chunks.read().to_pylist()
            if chunk["rank"] == 0
        }
        texts = ["?", first.get(body["prompt"], "?"), "?", "?"][: body["n"]]
        choices = [{"index": i, "text": text, "finish_reason": "length"} for i, text in enumerate(texts)]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 4 * len(texts)}
        return web.json_response({"model": body["model"], "choices": choices, "usage": usage})

    teacher.behave = behave


def test_a_new_objective_is_its_record_and_its_loss_terms(make_run, teacher, copy, tmp_path):
    run = make_run(
        questions=8,
        teacher={"base_url": teacher.base_url},
        train={"objective": "copy", "global_batch": 8, "epochs": 6, "checkpoint_every": 6},
    )
    config, round_ = run.config(), run.round(0)
    generate(run, 0, config)
    copies_first_chunks(teacher, round_)
    audit(run, 0, config)
    said = score(run, 0, config)

    chunks = round_.chunks.read().to_pylist()
    first = {chunk["trajectory_id"]: (chunk["start"], chunk["end"]) for chunk in chunks if chunk["rank"] == 0}
    trajectories = {row["trajectory_id"]: row for row in round_.trajectories.read().to_pylist()}
    assert len(first) == len(trajectories) == 8 < len(chunks)
    assert said == "8 chunks that the teacher wrote too; 8 training sequences"
    shards = round_.shards.read().to_pylist()
    assert sorted(shard["trajectory_id"] for shard in shards) == sorted(trajectories)
    for shard in shards:
        own = trajectories[shard["trajectory_id"]]
        prompt, (start, end) = len(own["prompt_ids"]), first[shard["trajectory_id"]]
        assert shard["input_ids"] == own["prompt_ids"] + own["response_ids"]
        at = range(prompt + start, prompt + end)
        assert shard["audited"] == [i in at for i in range(len(shard["input_ids"]))]
        assert shard["loss_weight"] == [float(i in at) for i in range(len(shard["input_ids"]))]
    assert round_.scores.manifest.rows == 0, "nothing was weighed"

    train_round(run, 0, config)
    assert weights_hash(round_.policy) != weights_hash(Path(config.student.model))
    steps = MetricsLog(run, 0).rows()
    assert [step["audited_tokens"] > 0 and step["kl_mean"] is None for step in steps] == [True] * 6
    assert steps[-1]["audited_nll"] < 0.7 * steps[0]["audited_nll"]
    assert steps[-1]["loss"] == pytest.approx(steps[-1]["audited_nll"])

    states = {stage.stage: (stage.state, stage.expected) for stage in read_status(run, config).rounds[0].stages}
    assert (states["audit"], states["score"]) == (("done", 4 * len(chunks)), ("done", 8))
    assert "chunks of 6 tokens, 4 rollouts each" in describe(predict(config, 8, 20.0, 40.0), config)
    write_report(run, config, tmp_path / "report.html", 10)
    assert "copy" in (tmp_path / "report.html").read_text()


def test_its_rules_hold_for_every_config_and_it_shares_what_it_asks_for(make_run, copy):
    run = make_run()
    ours, theirs = run.config(("train.objective=copy",)), run.config()
    with pytest.raises(ConfigError, match=r"copy weighs by copies\."):
        run.config(("train.objective=copy", "score.weights=constant"))
    with pytest.raises(ConfigError, match=r"teacher\.model is not set"):
        run.config(("train.objective=copy", "teacher.model="))
    for table in ("trajectories", "chunks", "rollouts"):
        assert made_with(ours, table) == made_with(theirs, table), "a study asks the teacher once for both"
    for table in ("shards", "policy"):
        assert made_with(ours, table) != made_with(theirs, table)


def test_a_name_that_is_not_registered_is_refused_with_those_that_are(make_run):
    with pytest.raises(ConfigError, match=r"train\.objective: .*'omniopd', 'sft', 'opd', 'grpo' or 'draft'") as caught:
        make_run().config(("train.objective=copy",))
    assert caught.value.exit_code == 3


def test_every_objective_has_loss_terms_and_a_record_that_agrees_with_itself():
    for name in names():
        objective = get(name)
        loss.loss_terms(TrainConfig(objective=name), NO_FACTS, on_policy=False)
        assert objective.samples_student == (objective.asks != "answers")
        assert isinstance(objective.learns, Spans) == (
            objective.asks != "answers" and objective.weights_from != "drafts"
        )
        assert (objective.asks != "nobody") == ("teacher.model" in objective.required)
        assert ("trajectories" in objective.own_tables) == (not objective.samples_student)


def test_the_registry_is_light_enough_for_the_command_line():
    heavy = {"numpy", "torch", "pyarrow", "duckdb", "transformers", "pydantic"}
    code = f"import sys, omniopd; print(sorted({heavy} & set(sys.modules)), 'omniopd.train' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == (
        "[] False\n"
    )
