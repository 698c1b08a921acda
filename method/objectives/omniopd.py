# pyright: strict
"""omniopd: the audited chunks of the student's trajectories, each weighed by how much the teacher's continuations of
its prefix resemble it (Eq. 5), and an anchor to the initial student on all other tokens of the response (Eq. 8)."""

from typing import TYPE_CHECKING, Any

from .record import Objective, Spans

if TYPE_CHECKING:
    from ...store.config import Config
    from ...store.sections import ScoreConfig

_SPANS = """
SELECT trajectory_id, start, "end", CASE WHEN $weights = 'constant' THEN 1 ELSE pi_teacher END AS weight
FROM chunks JOIN scores USING (chunk_id)
WHERE n >= $min_rollouts OR $weights = 'constant'
"""

_SUMMARY = """
SELECT count(*), count(*) FILTER (n >= $min_rollouts), count(*) FILTER (n = 0), avg(pi_freq), avg(pi_teacher)
FROM scores
"""


def _summary(row: tuple[Any, ...], score: "ScoreConfig") -> str:
    chunks, usable, unanswered, phi, weight = row
    means = "" if phi is None else f", mean {score.phi} similarity {phi:.3f}, mean weight {weight:.3f}"
    rest = (
        f" ({chunks - usable} left un-audited, {unanswered} of them without a usable rollout)"
        if usable < chunks
        else ""
    )
    return f"{usable} of {chunks} chunks weighed{rest}{means}"


def _shown(config: "Config") -> list[tuple[str, str]]:
    select, score, train = config.select, config.score, config.train
    kept = "earliest of " if select.keep == "earliest" else ""
    return [
        ("chunks M", f"{kept}{select.chunks}"), ("tokens C", f"{select.chunk_tokens}"),
        ("rollouts N", f"{config.teacher.rollouts}"), ("φ", f"{score.phi} on {score.unit}s"),
        ("α", f"{score.alpha:g}"), ("centring", score.centre), ("β", f"{train.beta:g}"), ("lr", f"{train.lr:g}"),
        ("batch", f"{train.global_batch}"), ("weights", score.weights),
    ]  # fmt: skip


OMNIOPD = Objective(
    name="omniopd",
    required=("teacher.model",),
    asks="chunks",
    weights_from="scores",
    learns=Spans(_SPANS),
    summary_sql=_SUMMARY,
    summary=_summary,
    frozen="initial",
    anchored="unaudited",
    may_centre=True,
    shown=_shown,
)
