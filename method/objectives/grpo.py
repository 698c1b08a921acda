# pyright: strict
"""grpo: the student's own responses, each weighed by its advantage over the other samples of its prompt (DeepSeekMath,
arXiv 2402.03300), and an anchor to the initial student on all tokens of the response. No teacher."""

from typing import TYPE_CHECKING, Any

from .record import Objective, Spans, no_constant_weights, shown_of_all

if TYPE_CHECKING:
    from ...store.config import Config
    from ...store.sections import ScoreConfig

_SPANS = """
SELECT trajectory_id, 0 AS start, len(response_ids) AS "end", advantage AS weight
FROM trajectories JOIN rewards USING (trajectory_id)
"""

_SUMMARY = """
SELECT avg(reward), avg((low < high)::INTEGER), count(*)
FROM (SELECT avg(reward) AS reward, min(reward) AS low, max(reward) AS high
      FROM rewards JOIN trajectories USING (trajectory_id) GROUP BY prompt_id)
"""


def _summary(row: tuple[Any, ...], score: "ScoreConfig") -> str:
    reward, signal, groups = row
    return f"mean reward {reward:.3f} by {score.grader}, {signal:.0%} of {groups:,} groups carry signal"


def _shown(config: "Config") -> list[tuple[str, str]]:
    train = config.train
    samples = f"{config.generate.samples_per_prompt}"
    clip = f"-{train.clip_low:g}, +{train.clip_high:g}"
    own = [("samples", samples), ("grader", config.score.grader), ("clip", clip), ("β", f"{train.beta:g}")]
    return [*shown_of_all(config), *own]


GRPO = Objective(
    name="grpo",
    refused=(no_constant_weights("grpo"),),
    own_tables=("chunks", "rollouts"),
    rescored=True,
    least_samples=2,
    weights_from="rewards",
    learns=Spans(_SPANS),
    summary_sql=_SUMMARY,
    summary=_summary,
    frozen="initial",
    shown=_shown,
)
