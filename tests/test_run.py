"""A run from Python: what the commands do, as methods."""

import os

import pytest

from omniopd import Run
from omniopd.store.errors import ConfigError, TableError, UsageError
from support.processes import finish


@pytest.fixture
def run(make_run, teacher):
    made = make_run(questions=6, teacher={"rollouts": 2})
    return Run(made.path, {"teacher.base_url": teacher.base_url, "train.steps": 1, "teacher.budget_usd": None})


def test_the_stages_are_methods_and_each_goes_on_with_the_first_round_that_is_not_done(run):
    assert run.generate(check=False).startswith("6 trajectories")
    assert "36 of 36 rollouts" in run.audit(check=False)
    assert "chunks weighed" in run.score()
    assert run.next_round == 0
    assert run.train().startswith("1 steps")
    assert run.next_round == 1
    assert run.status().rounds[0].stages[3].state == "done"
    assert run.score(0).endswith("6 training sequences"), "a round that is named is that round"


def test_run_drives_the_rounds_and_returns_the_policy(run):
    said = []
    policy = run.run(1, check=False, say=said.append)
    assert (policy / "model.safetensors").is_file()
    assert [line.split(":")[0].split()[-1] for line in said[:-1]] == ["generate", "audit", "score", "train"]
    assert run.run(1, check=False, say=said.append) == policy
    assert said[-2] == "round 0: done"


def test_a_run_ends_with_its_card(run):
    said = []
    run.run(1, check=False, say=said.append)
    assert said[-1] == f"wrote {run.folder.card}"
    text = run.folder.card.read_text()
    # What was asked for is on record, whatever the config says now.
    assert "| 0 | omniopd | 6 | 18 | 2 | 1 |" in text
    again = Run(run.folder.path, {"teacher.rollouts": 7, "train.objective": "sft"}).card()
    assert (again.rounds[0].objective, again.rounds[0].rollouts) == ("omniopd", 2)
    assert again.settings["teacher.rollouts"] == 2
    assert again.policy in text


def test_tables_and_statements_answer_as_polars_frames(run):
    run.generate(check=False)
    run.audit(check=False)
    chunks = run.table("chunks")
    assert chunks.height == run.status().rounds[0].stages[1].expected / 2
    assert set(run.sql("SELECT count(*) AS n FROM rollouts")["n"]) == {chunks.height * 2}
    assert run.table("chunks_scored")["pi_teacher"].null_count() == chunks.height
    with pytest.raises(UsageError, match="disabled by configuration"):
        run.sql(f"SELECT * FROM read_text('{run.folder.config_toml}')")
    with pytest.raises(UsageError, match="nowhere") as caught:
        run.table("nowhere")
    assert "chunks_scored" in caught.value.hint


def test_settings_are_those_of_set(make_run):
    made = make_run()
    settings = {
        "train.lr": 3e-4, "teacher.extra": {"top_k": 5, "nested": {"a": "b"}}, "generate.stop_token_ids": [3, 4],
        "student.dtype": "float32", "teacher.max_tokens": None,
    }  # fmt: skip
    config = Run(made.path, settings).config
    assert (config.train.lr, config.generate.stop_token_ids) == (3e-4, (3, 4))
    assert config.teacher.extra == {"top_k": 5, "nested": {"a": "b"}}
    assert (config.student.dtype, config.teacher.max_tokens) == ("float32", None)
    texts = Run(os.fspath(made.path), ["train.lr=3e-4"]).config
    assert texts.train.lr == 3e-4


def test_errors_have_a_problem_a_hint_and_the_exit_code_of_the_command(run, tmp_path):
    with pytest.raises(TableError) as caught:
        run.score()
    assert "trajectories is empty" in caught.value.problem
    assert "omniopd generate" in caught.value.hint
    assert caught.value.exit_code == 3
    with pytest.raises(ConfigError, match="does not exist"):
        Run(tmp_path / "nowhere").generate()


def test_the_command_and_the_method_find_each_others_work_done(run):
    run.generate(check=False)
    parts = run.folder.round(0).trajectories.manifest.parts
    finish("generate", run.folder.path, "--no-check")
    assert run.folder.round(0).trajectories.manifest.parts == parts
