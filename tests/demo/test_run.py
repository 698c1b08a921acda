"""The demo at a small size: what it compares is comparable, and it can be stopped and resumed."""

import json

import pytest

from omniopd.demo import run as demo_run
from omniopd.demo.evaluate import evaluate, gain, keep
from omniopd.demo.tasks.sums import problems
from omniopd.eval.estimate import Interval
from omniopd.store.errors import UsageError
from omniopd.store.layout import RunDir
from omniopd.store.ledger_read import read_totals
from omniopd.view.report.figures import accuracy
from support.runs import STUDENT


@pytest.mark.slow
def test_the_demo_distils_in_two_ways_beside_a_control_and_a_second_call_asks_nothing_again(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_run, "PROMPTS_PER_ROUND", 32)
    monkeypatch.setattr(demo_run, "DRAFTS_PER_ROUND", 200)
    monkeypatch.setattr(demo_run, "HELD_OUT", 40)
    said: list[str] = []
    first = demo_run.demo(tmp_path, rounds=2, seed=0, say=said.append)
    main, control, draft = (RunDir(tmp_path / f"seed=0{suffix}") for suffix in ("", "-control", "-draft"))

    for index in range(2):
        mine, theirs = (run.round(index).trajectories.existing_keys() for run in (main, control))
        assert mine == theirs
    assert control.round(0).chunks.existing_keys() == main.round(0).chunks.existing_keys()
    weights = {w for row in control.round(0).shards.read(["loss_weight"])["loss_weight"].to_pylist() for w in row}
    assert weights == {0.0, 1.0}
    assert read_totals(control.ledger).requests == 0
    for index in range(2):
        spent = [read_totals(run.ledger, index).charged_tokens for run in (main, draft)]
        assert 0.6 * spent[0] < spent[1] <= spent[0]
        assert draft.round(index).trajectories.manifest.rows > 2 * 32, "a draft costs less than a prompt's chunks"
    assert {len(v) for result in vars(first).values() for v in (result.sampled, result.greedy)} == {40}
    assert any("draft over control, same trajectories" in line for line in said)

    assert {row["rounds"] for run in (main, control, draft) for row in accuracy(run)} == {0, 2}

    first_server = ran_with(main)["teacher"]["base_url"]
    assert f"the teacher is served at {first_server}" in said[0]
    assert ran_with(control)["score"]["weights"] == "constant"
    assert ran_with(draft)["train"]["objective"] == "draft"

    asked, drafted = (read_totals(run.ledger).requests for run in (main, draft))
    assert asked == sum(main.round(k).chunks.manifest.rows for k in (0, 1))
    assert demo_run.demo(tmp_path, rounds=2, seed=0, say=said.append) == first
    assert [read_totals(run.ledger).requests for run in (main, draft)] == [asked, drafted]
    later = [line for line in said if "the teacher is served at" in line][1]
    assert ran_with(main)["teacher"]["base_url"] in later, "the server of the second call, not the one in config.toml"


def ran_with(run):
    """The recorded config."""
    return json.loads((run.path / "config.resolved.json").read_text())


def test_what_it_measures_is_an_evaluation_of_its_run(make_run):
    run, held_out = make_run(), problems(6, seed=0, split="heldout")
    result = evaluate(STUDENT, held_out, 0)
    keep(run, 0, result)
    keep(run, 0, result)  # of a demo that is resumed
    rows = {row["benchmark"]: row for row in accuracy(run)}
    assert set(rows) == {"held-out, T = 1", "held-out, greedy"}
    assert rows["held-out, greedy"]["accuracy"] == sum(result.greedy) / 6
    assert rows["held-out, T = 1"]["accuracy"] == sum(result.sampled) / 6
    assert rows["held-out, T = 1"]["answers"] == 6


def test_a_run_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "seed=0").mkdir()
    (tmp_path / "seed=0" / "config.toml").write_text("[train]\n")
    with pytest.raises(UsageError, match="is not a run of the demo"):
        demo_run.demo(tmp_path, rounds=1, seed=0, say=lambda line: None)


def test_a_gain_of_a_model_over_itself_is_exactly_nothing():
    verdicts = [True, False, True, True]
    assert gain(verdicts, verdicts) == Interval(0.0, 0.0, 0.0)
    assert gain([True] * 50, [False] * 50) == Interval(1.0, 1.0, 1.0)
