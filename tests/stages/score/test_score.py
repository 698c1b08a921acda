"""Scores and shards beside a reference in plain Python, on tables with every kind of rollout."""

import functools

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from omniopd.method.similarity.metrics import METRICS
from omniopd.stages.score.stage import score
from omniopd.store.config import Config
from omniopd.store.errors import InputError, TableError
from omniopd.store.layout import RunDir
from omniopd.store.schema import SHARDS
from omniopd.store.sections import ScoreConfig, StudentConfig
from omniopd.view.sql import query
from support.tables import edit


def phi_char(chunk, rollout):
    """Edit similarity of characters, recursively, the rollout cut to the chunk's length."""

    @functools.cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    a, b = chunk, rollout[: len(chunk)]
    return 1 - distance(len(a), len(b)) / max(len(a), len(b))


def write(run, trajectories, chunks, rollouts):
    round_ = run.round(0)
    for table, rows in ((round_.trajectories, trajectories), (round_.chunks, chunks), (round_.rollouts, rollouts)):
        table.begin({})
        table.append(rows)
        table.finish()


@st.composite
def rounds(draw):
    """A few trajectories with random chunks and rollouts of every status."""
    trajectories, chunks, rollouts = [], [], []
    for t in range(draw(st.integers(1, 3))):
        length = draw(st.integers(1, 14))
        prompt = list(range(draw(st.integers(0, 3))))
        floats = st.lists(st.floats(-3, 0, width=32), min_size=length, max_size=length)
        trajectories.append(
            {"trajectory_id": f"t{t}", "round": 0, "prompt_ids": prompt, "response_ids": list(range(100, 100 + length)),
             "logprobs": draw(floats), "entropies": draw(floats), "finish_reason": "stop"}
        )  # fmt: skip
        cuts = sorted(draw(st.sets(st.integers(0, length), max_size=6)))
        for i, (start, end) in enumerate(zip(cuts[::2], cuts[1::2], strict=False)):
            chunk_id = f"t{t}c{i}"
            chunks.append(
                {"chunk_id": chunk_id, "trajectory_id": f"t{t}", "round": 0, "rank": i, "anchor": start,
                 "start": start, "end": end, "anchor_entropy": 1.0, "prior": draw(st.floats(0.01, 1.0)),
                 "prefix_text": "", "chunk_text": draw(st.text("abc", max_size=5))}
            )  # fmt: skip
            for j in range(draw(st.integers(0, 4))):
                status = draw(st.sampled_from(["ok", "ok", "empty", "failed", "refused", "filtered"]))
                text = {"ok": draw(st.text("abc", min_size=1, max_size=7)), "empty": ""}.get(status)
                rollouts.append({"chunk_id": chunk_id, "rollout_index": j, "status": status, "text": text})
    return trajectories, chunks, rollouts


@given(rounds(), st.sampled_from([0.0, 0.5, 1.0, 4.0]), st.integers(1, 3))
def test_scores_and_shards_equal_the_reference(tmp_path_factory, tables, alpha, min_rollouts):
    trajectories, chunks, rollouts = tables
    run = RunDir(tmp_path_factory.mktemp("run"))
    write(run, trajectories, chunks, rollouts)
    score(run, 0, Config(score=ScoreConfig(unit="char", alpha=alpha, min_rollouts=min_rollouts)))

    expected = {}
    for chunk in chunks:
        phis = [
            phi_char(chunk["chunk_text"], row["text"])
            for row in rollouts
            if row["chunk_id"] == chunk["chunk_id"] and row["status"] in ("ok", "empty") and chunk["chunk_text"]
        ]
        n, k = len(phis), sum(phis)
        expected[chunk["chunk_id"]] = (
            k, n, k / n if n else None, (k + alpha * chunk["prior"]) / (n + alpha) if n + alpha else None,
            np.var(phis, ddof=1) if n > 1 else None,
        )  # fmt: skip
    got = {row["chunk_id"]: row for row in run.round(0).scores.read().to_pylist()}
    assert got.keys() == expected.keys()
    for chunk_id, values in expected.items():
        row = got[chunk_id]
        for name, value in zip(("k_sem", "n", "pi_freq", "pi_teacher", "phi_var"), values, strict=True):
            assert row[name] == (None if value is None else pytest.approx(value, abs=1e-12)), name

    shards = {row["trajectory_id"]: row for row in run.round(0).shards.read().to_pylist()}
    for t in trajectories:
        p, r = len(t["prompt_ids"]), len(t["response_ids"])
        weight, audited = [0.0] * (p + r), [False] * (p + r)
        for chunk in chunks:
            pi = expected[chunk["chunk_id"]]
            if chunk["trajectory_id"] == t["trajectory_id"] and pi[1] >= min_rollouts:
                for i in range(p + chunk["start"], p + chunk["end"]):
                    weight[i], audited[i] = pi[3], True
        shard = shards[t["trajectory_id"]]
        assert shard["input_ids"] == t["prompt_ids"] + t["response_ids"]
        assert shard["loss_weight"] == pytest.approx(weight, abs=1e-6)
        assert shard["audited"] == audited
        assert shard["response_mask"] == [False] * p + [True] * r
        assert shard["behaviour_logprobs"] == pytest.approx([0.0] * p + t["logprobs"], abs=1e-6)


ROLLOUT = {"chunk_id": "c", "rollout_index": 0, "status": "ok", "text": "ab"}


@pytest.fixture
def tables():
    trajectory = {"trajectory_id": "t", "round": 0, "prompt_ids": [1], "response_ids": [2, 3],
                  "logprobs": [-1.0, -1.0], "entropies": [1.0, 1.0], "finish_reason": "stop"}  # fmt: skip
    chunk = {"chunk_id": "c", "trajectory_id": "t", "round": 0, "rank": 0, "anchor": 0, "start": 0, "end": 2,
             "anchor_entropy": 1.0, "prior": 0.5, "prefix_text": "", "chunk_text": "ab"}  # fmt: skip
    return trajectory, chunk, ROLLOUT


def test_scores_of_other_settings_stand_side_by_side_and_the_shards_are_those_in_force(tmp_path, tables):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    round_ = run.round(0)
    write(run, [trajectory], [chunk], [rollout | {"text": "ab c"}])
    expected = {("edit", "word", 1.0): 0.75, ("edit", "word", 3.0): 0.625, ("rouge1", "char", 1.0): 0.75}
    for (phi, unit, alpha), weight in expected.items():
        score(run, 0, Config(score=ScoreConfig(phi=phi, unit=unit, alpha=alpha)))
        (row,) = round_.scores.read().to_pylist()
        assert (row["phi"], row["unit"], row["alpha"]) == (phi, unit, alpha)
        assert row["pi_teacher"] == pytest.approx(weight)
        assert round_.shards.read()["loss_weight"].to_pylist() == [pytest.approx([0, weight, weight])]
    found = query(run, "SELECT phi, unit, alpha FROM all_scores")
    assert (found.count("edit"), found.count("rouge1")) == (2, 1)
    assert len(round_.all_scores) == 3


def test_a_setting_that_was_scored_before_is_taken_from_its_folder(tmp_path, tables, monkeypatch):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [rollout])
    for alpha in (1.0, 3.0):
        score(run, 0, Config(score=ScoreConfig(alpha=alpha)))
    monkeypatch.setattr("omniopd.stages.score.stage.find_metric", None)  # nothing is compared again
    score(run, 0, Config(score=ScoreConfig(alpha=1.0, min_rollouts=2)))
    assert run.round(0).shards.read()["audited"].to_pylist() == [[False] * 3]
    score(run, 0, Config(score=ScoreConfig(alpha=1.0)))
    assert run.round(0).shards.read()["loss_weight"].to_pylist() == [[0.0, 0.75, 0.75]]


def test_more_rollouts_outdate_the_scores_of_every_setting(tmp_path, tables):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [rollout])
    score(run, 0, Config(score=ScoreConfig(alpha=3.0)))
    run.round(0).rollouts.append([rollout | {"rollout_index": 1}])
    score(run, 0, Config())
    assert [table.read()["n"].to_pylist() for table in run.round(0).all_scores] == [[2]]


def test_the_credible_interval_is_that_of_the_posterior_and_holds_its_mean(tmp_path, tables):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(
        run, [trajectory], [chunk], [rollout | {"rollout_index": i, "text": t} for i, t in enumerate(["ab", "c", "d"])]
    )
    score(run, 0, Config())
    (row,) = run.round(0).scores.read().to_pylist()
    posterior = scipy.stats.beta(1 + 0.5, 2 + 0.5)
    assert row["pi_teacher"] == pytest.approx(posterior.mean())
    assert (row["pi_low"], row["pi_high"]) == pytest.approx(posterior.interval(0.95))


@pytest.mark.parametrize(
    ("alpha", "texts", "interval"),
    [(0.0, [], (None, None)), (0.0, ["ab"], (1.0, 1.0)), (0.0, ["c"], (0.0, 0.0))],
)
def test_without_a_prior_one_sided_evidence_is_a_point_and_none_at_all_is_no_interval(
    tmp_path, tables, alpha, texts, interval
):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [rollout | {"rollout_index": i, "text": t} for i, t in enumerate(texts)])
    score(run, 0, Config(score=ScoreConfig(alpha=alpha)))
    (row,) = run.round(0).scores.read().to_pylist()
    assert (row["pi_low"], row["pi_high"]) == interval


def test_chunks_without_a_usable_rollout_are_counted_and_left_un_audited(tmp_path, tables):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [rollout | {"status": "refused", "text": None}])
    line = score(run, 0, Config())
    assert line.startswith("0 of 1 chunks weighed (1 left un-audited, 1 of them without a usable rollout)")
    assert run.round(0).shards.read()["audited"].to_pylist() == [[False] * 3]


def test_the_units_may_be_the_students_tokens(tmp_path, tables, student):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk | {"chunk_text": "12+3"}], [rollout | {"text": "12+4"}])
    config = Config(student=StudentConfig(model=str(student)), score=ScoreConfig(unit="token"))
    score(run, 0, config)
    assert run.round(0).scores.read()["pi_freq"].to_pylist() == [0.75]


def test_a_metric_that_fails_is_one_clear_line(tmp_path, tables, monkeypatch):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [rollout])
    monkeypatch.setitem(METRICS, "edit", lambda pairs: np.full(len(pairs), np.nan))
    with pytest.raises(InputError, match="gave values that are no numbers"):
        score(run, 0, Config())
    assert run.round(0).all_scores == []


def test_what_does_not_fit_into_memory_is_spilled_under_the_run_and_the_answer_is_the_same(tmp_path, tables):
    trajectory, chunk, rollout = tables
    chunks = [chunk | {"chunk_id": f"c{i:050}", "trajectory_id": f"t{i:050}"} for i in range(20_000)]
    trajectories = [trajectory | {"trajectory_id": c["trajectory_id"]} for c in chunks]
    rollouts = [rollout | {"chunk_id": c["chunk_id"], "rollout_index": i} for c in chunks for i in range(3)]
    run = RunDir(tmp_path)
    write(run, trajectories, chunks, rollouts)
    score(run, 0, Config(score=ScoreConfig(memory_gb=0.06, threads=2)))
    assert run.round(0).scores.read()["k_sem"].to_pylist() == [3.0] * 20_000
    assert run.round(0).shards.manifest.rows == 20_000


def test_constant_weights_are_one_on_every_chunk_whatever_the_teacher_said(tmp_path, tables):
    trajectory, chunk, _ = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [])
    score(run, 0, Config(score=ScoreConfig(weights="constant")))
    (shard,) = run.round(0).shards.read().to_pylist()
    assert shard["loss_weight"] == [0.0, 1.0, 1.0]
    assert shard["audited"] == [False, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rollouts": [ROLLOUT | {"chunk_id": "ghost"}]}, "1 rollouts of a chunk"),
        ({"rollouts": [ROLLOUT] * 2}, "1 rollouts with the same"),
        ({"rollouts": [ROLLOUT | {"text": None}]}, "1 answered rollouts without a text"),
        ({"rollouts": [ROLLOUT | {"status": "good"}]}, "1 rollouts whose status"),
        ({"rollouts": [ROLLOUT | {"status": None}]}, "1 rollouts whose status"),
        ({"copies": 2}, "1 chunks with the same chunk_id"),
        ({"end": 3}, "1 chunks that reach outside"),
        ({"start": 2}, "1 chunks that reach outside"),
        ({"chunk_text": None}, "1 chunks without a text"),
        ({"prior": None}, "1 chunks whose prior"),
        ({"also": {"chunk_id": "d", "start": 1}}, "1 chunks that overlap"),
        ({"logprobs": [-1.0]}, "1 trajectories whose tokens and log-probs"),
        ({"prior": 0.0}, "1 chunks whose prior"),
        ({"prior": float("nan")}, "1 chunks whose prior"),
        ({"trajectory_id": "ghost"}, "1 chunks of a trajectory"),
    ],
)  # fmt: skip
def test_rows_that_contradict_each_other_are_refused(tmp_path, tables, change, message):
    trajectory, chunk, rollout = tables
    change = dict(change)
    rollouts, copies, also = change.pop("rollouts", [rollout]), change.pop("copies", 1), change.pop("also", None)
    trajectory |= {"logprobs": change.pop("logprobs", trajectory["logprobs"])}
    run = RunDir(tmp_path)
    write(run, [trajectory], [*[chunk | change] * copies, *([chunk | also] if also else [])], rollouts)
    with pytest.raises(TableError, match=message):
        score(run, 0, Config())
    assert run.round(0).all_scores == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": [1, 2, 4]}, "1 shards whose ids disagree with their trajectory"),
        ({"input_ids": [1, 2]}, "1 shards whose ids disagree with their trajectory"),
        ({"trajectory_id": "ghost"}, "2 trajectories without exactly one shard"),
    ],
)
def test_shards_that_disagree_with_the_trajectories_are_refused(tmp_path, tables, change, message):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [rollout])
    score(run, 0, Config())
    shards = run.round(0).shards
    (row,) = shards.read().to_pylist()
    shards.replace([pa.Table.from_pylist([row | change], schema=SHARDS.schema)], shards.manifest.made_with)
    with pytest.raises(TableError, match=message):
        score(run, 0, Config())


def test_scoring_needs_a_finished_audit(tmp_path, tables):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [rollout])
    edit(run.round(0).rollouts.folder, {"complete": False})
    with pytest.raises(TableError, match="Run `omniopd audit"):
        score(run, 0, Config())
