"""What the round's other tables say about the sequences that are trained on; for the metrics alone."""

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..store.layout import RoundDir
from ..store.table import Table


@dataclass(frozen=True)
class TrajectoryFacts:
    """One value a training sequence; NaN where the tables are not on this machine."""

    similarity: npt.NDArray[np.float64]
    """Sum of the similarities of the sequence's scored chunks to the teacher's continuations."""
    chunks: npt.NDArray[np.float64]
    """How many there are."""
    repetition: npt.NDArray[np.float64]
    """Share of the response that its longest repeated token sequence makes up."""
    reward: npt.NDArray[np.float64]
    """What a grader gave it (grpo)."""

    def phi(self, sequences: npt.NDArray[np.int64]) -> float:
        """Mean similarity over all chunks of some sequences; NaN where there are none."""
        chunks = float(self.chunks[sequences].sum())
        return float(self.similarity[sequences].sum()) / chunks if chunks else float("nan")


def trajectory_facts(round_: RoundDir) -> TrajectoryFacts:
    """Look up the training sequences, in the order of the shards."""
    ids: list[str] = _columns(round_.shards, "trajectory_id")["trajectory_id"]
    chunks = _columns(round_.chunks, "chunk_id", "trajectory_id")
    owner: dict[str, str] = dict(zip(chunks["chunk_id"], chunks["trajectory_id"], strict=True))
    similarity, count = dict.fromkeys(ids, 0.0), dict.fromkeys(ids, 0)
    scores = _columns(round_.scores, "chunk_id", "pi_freq")
    for chunk, value in zip(scores["chunk_id"], scores["pi_freq"], strict=True):
        id_ = owner.get(chunk, "")
        if id_ in count and value is not None:
            similarity[id_] += value
            count[id_] += 1
    trajectories = _columns(round_.trajectories, "trajectory_id", "repetition")
    repetition = dict(zip(trajectories["trajectory_id"], trajectories["repetition"], strict=True))
    rewards = _columns(round_.rewards, "trajectory_id", "reward")
    reward = dict(zip(rewards["trajectory_id"], rewards["reward"], strict=True))
    return TrajectoryFacts(
        np.array([similarity[id_] for id_ in ids]),
        np.array([float(count[id_]) for id_ in ids]),
        _of(repetition, ids),
        _of(reward, ids),
    )


def _of(values: dict[str, Any], ids: list[str]) -> npt.NDArray[np.float64]:
    return np.array([float("nan") if (value := values.get(id_)) is None else float(value) for id_ in ids])


def _columns(table: Table, *names: str) -> dict[str, list[Any]]:
    return cast("Any", table).read(names).to_pydict()
