"""What a step reports, and where it can be watched."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from omniopd.store.layout import RunDir
from omniopd.train.metrics import TRAIN_METRICS, MetricsLog
from omniopd.train.trainer import train_round
from support import training as kit


def scalars(run: RunDir) -> dict[str, list[tuple[int, float]]]:
    """TensorBoard's values by name, as (step, value)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.metrics / "tensorboard" / "train"))
    events.Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def write_scores(run: RunDir, index: int, similarity: dict[str, list[float]]) -> None:
    """Chunks and scores with these similarities by trajectory."""
    round_ = run.round(index)
    chunks = [(f"{id_}-{i}", id_, value) for id_, values in similarity.items() for i, value in enumerate(values)]
    folder = "edit"
    round_.shards.replace([round_.shards.read()], {"scores": folder})
    scores = round_.scores
    for table, rows in (
        (round_.chunks, [{"chunk_id": chunk, "trajectory_id": id_} for chunk, id_, _ in chunks]),
        (scores, [{"chunk_id": chunk, "pi_freq": value} for chunk, _, value in chunks]),
    ):
        table.begin({})
        table.append(rows)
        table.finish()


def test_two_rounds_are_one_line_in_tensorboard_and_say_what_the_loss_does_not(
    run: RunDir, students: Callable[[str], Path]
) -> None:
    config = kit.make_config(students("qwen3"))
    for index in (0, 1):
        # TensorBoard reads files by name, which has the second and then a counter that is no longer sorted past 9.
        time.sleep(1 - time.time() % 1)
        rows = kit.shard_rows(8, seed=index)
        kit.write_round(run, index, config, rows)
        write_scores(run, index, {"t0000": [0.25, 0.5], "t0003": [0.75], "not trained on": [1.0]})
        train_round(run, index, config)
    logged = scalars(run)
    assert [step for step, _ in logged["train/loss"]] == [0, 1, 2, 3]
    lines = MetricsLog(run, 0).rows() + MetricsLog(run, 1).rows()
    assert [value for _, value in logged["train/loss"]] == pytest.approx([row["loss"] for row in lines], rel=1e-6)
    # One of a round's two steps has t0000, one has t0003, or one has both and the other has none.
    means = sorted((row["phi"] is None, row["phi"]) for row in lines[:2])
    assert means in ([(False, 0.375), (False, 0.75)], [(False, 0.5), (True, None)])
    responses = [sum(row["response_mask"]) for row in kit.shard_rows(8)]
    assert sum(row["response_tokens"] for row in lines[:2]) / 2 == pytest.approx(sum(responses) / 8)
    assert all(row["repetition"] is None and 0 <= row["padding"] < 0.5 for row in lines)


def test_every_metric_is_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for field in TRAIN_METRICS.schema:
        unit = field.metadata.get(b"unit", b"").decode()
        assert f"| `{field.name}` | {unit} | {field.metadata[b'doc'].decode()} |" in text
