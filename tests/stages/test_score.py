"""Scores and shards beside a reference in plain Python, on tables with every kind of rollout."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omniopd.stages.score.stage import score
from omniopd.store.config import Config, ScoreConfig
from omniopd.store.errors import TableError
from omniopd.store.layout import RunDir


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


@settings(max_examples=60, deadline=None)
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


def test_other_settings_replace_the_scores_without_asking_the_teacher(tmp_path, tables):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [rollout])
    for alpha in (1.0, 3.0, 3.0):
        score(run, 0, Config(score=ScoreConfig(alpha=alpha)))
        (row,) = run.round(0).scores.read().to_pylist()
        assert row["pi_teacher"] == pytest.approx((1 + alpha * 0.5) / (1 + alpha))


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
        ({"prior": 0.0}, "1 chunks whose prior"),
        ({"prior": float("nan")}, "1 chunks whose prior"),
        ({"trajectory_id": "ghost"}, "1 chunks of a trajectory"),
    ],
)  # fmt: skip
def test_rows_that_contradict_each_other_are_refused(tmp_path, tables, change, message):
    trajectory, chunk, rollout = tables
    rollouts = change.pop("rollouts", [rollout])
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk | change], rollouts)
    with pytest.raises(TableError, match=message):
        score(run, 0, Config())
    assert not run.round(0).scores.folder.exists()


def test_scoring_needs_a_finished_audit(tmp_path, tables):
    trajectory, chunk, rollout = tables
    run = RunDir(tmp_path)
    write(run, [trajectory], [chunk], [rollout])
    manifest = run.round(0).rollouts.folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    with pytest.raises(TableError, match="Run `omniopd audit"):
        score(run, 0, Config())
