"""What `plan` says of a round, for each objective and for every recipe."""

import json

import pytest

from omniopd.stages.audit.stage import audit
from omniopd.store.config import Config, commented_toml
from omniopd.store.layout import RunDir
from omniopd.store.recipes import recipe, recipe_rows
from omniopd.view.plan import describe, forecasts, plan, predict

PAID = ("claude", "gemini")


def config(objective, **sections):
    values = {
        "generate": {"max_new_tokens": 1000, "samples_per_prompt": 2},
        "teacher": {"model": "t", "rollouts": 3, "price": {"input": 1.0, "output": 10.0}},
        "train": {"objective": objective, "global_batch": 16, "teacher": "Qwen/Qwen3-32B"},
    }
    for section, keys in sections.items():
        values.setdefault(section, {}).update(keys)
    return Config.model_validate(values)


def test_omniopd_generates_trajectories_and_asks_about_their_chunks():
    settings = config("omniopd")
    found = predict(settings, 20, 50.0, 400.0)
    assert (found.trajectories, found.shape.chunks) == (40, 40 * 8)
    assert found.shape.prefix_tokens == 40 * 8 * (50 + 200)
    student = found.student
    assert (student.generated, student.trained, student.steps) == (40 * 400, 40 * 450, 3)
    assert "the initial student reads as many" in describe(found, settings)


def test_only_the_earliest_chunk_of_each_trajectory_is_asked_about_where_it_alone_is_kept():
    found = predict(config("omniopd", select={"chunks": 3, "keep": "earliest"}), 20, 50.0, 400.0)
    assert found.shape.chunks == 40
    assert found.shape.prefix_tokens == 40 * (50 + 100), "three starts lie evenly over the response"


def test_sft_asks_for_whole_answers_and_generates_nothing():
    settings = config("sft")
    found = predict(settings, 20, 50.0, None)
    one, batch = forecasts(found, settings)
    assert (one.mode, batch.mode) == ("live", "batch")
    # samples_per_prompt is the student's, who is not sampled.
    assert (one.requests, one.prompt_tokens, one.completion_tokens) == (20, 20 * 50, 20 * 3 * 1000)
    assert one.usd == pytest.approx((1000 + 10 * 60_000) / 1e6)
    assert batch.usd == pytest.approx(one.usd / 2)
    assert (found.student.generated, found.student.trained, found.student.frozen) == (0, 60 * 1050, "")
    text = describe(found, settings)
    assert "answers  3 for each of 20 trajectories = 60" in text
    assert "generated" not in text
    assert predict(config("sft", teacher={"max_tokens": 300}), 20, 50.0, None).shape.max_tokens == 20 * 300


def test_opd_asks_nobody_and_its_teacher_reads_what_is_trained_on():
    settings = config("opd")
    found = predict(settings, 20, 50.0, 400.0)
    assert forecasts(found, settings) == []
    text = describe(found, settings)
    assert "teacher  is not asked" in text
    assert "18,000 are trained on in 3 steps, prompts included, and Qwen/Qwen3-32B reads as many" in text
    assert "caps" not in text


def test_grpo_has_no_teacher_and_its_reference_is_there_only_for_a_kl():
    found = predict(config("grpo"), 20, 50.0, 400.0)
    assert found.shape is None
    assert found.student.frozen == "the initial student"
    assert predict(config("grpo", train={"beta": 0.0}), 20, 50.0, 400.0).student.frozen == ""


def test_constant_weights_ask_nobody():
    assert predict(config("omniopd", score={"weights": "constant"}), 20, 50.0, 400.0).shape is None


def test_steps_and_epochs_count():
    twice = predict(config("grpo", train={"epochs": 2}), 20, 50.0, 400.0).student
    assert (twice.steps, twice.trained) == (6, 2 * 18_000)
    cut = predict(config("grpo", train={"steps": 2}), 20, 50.0, 400.0).student
    assert (cut.steps, cut.trained) == (2, 2 * 16 * 450)


def test_a_round_that_is_there_is_measured(make_run, teacher, generated):
    run = make_run(questions=4, teacher={"base_url": teacher.base_url})
    settings = run.config()
    assert not plan(run, settings).measured
    generated(run)
    lengths = [len(ids) for ids in run.round(0).trajectories.read(["response_ids"])["response_ids"].to_pylist()]
    found = plan(run, settings)
    assert found.measured
    assert found.student.generated == sum(lengths)
    # The trajectories say nothing about how long the teacher's answers are; its rollouts do.
    sft = run.config(("train.objective=sft",))
    assert not plan(run, sft).measured
    audit(run, 0, settings)
    assert plan(run, sft).length == 4, "the scripted teacher's"


@pytest.mark.parametrize("name", list(recipe_rows()))
def test_a_recipe_is_planned_and_priced_without_a_network(name, tmp_path, student):
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"{i}+{i}?", "solution": str(2 * i), "ability": "code"} for i in range(3)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.config_toml.write_text(commented_toml(recipe(name)))
    # The shipped student's heads cannot be split over opd's four GPUs.
    settings = run.config((f"student.model={student}", f"data.prompts={prompts}", "train.tensor_parallel=1"))
    found = plan(run, settings)
    assert found.student.trained > 0
    ways = forecasts(found, settings)
    assert bool(ways) == (settings.train.objective in ("omniopd", "sft"))
    if any(word in settings.teacher.model for word in PAID):
        assert all(one.usd > 0 and one.prices.startswith("genai-prices") for one in ways)
    else:
        assert all(one.usd == 0 and one.prices == "unknown" for one in ways)
    assert describe(found, settings)
