# pyright: strict
"""opd: white-box on-policy distillation, forward and reverse KL to a teacher whose weights are here, on all tokens of
the student's responses (Eq. 2, section 5.1). Nothing is asked, and nothing has a weight."""

from typing import TYPE_CHECKING, Any

from ...store.objectives import Refusal
from .record import Objective, Spans, no_constant_weights, shown_of_all

if TYPE_CHECKING:
    from ...store.config import Config
    from ...store.sections import ScoreConfig

_NO_SPANS = 'SELECT trajectory_id, 0 AS start, 0 AS "end", 0 AS weight FROM trajectories WHERE false'


def _summary(row: tuple[Any, ...], score: "ScoreConfig") -> str:
    (tokens,) = row
    return f"{tokens or 0:,} tokens of the student's to be held against the teacher's distribution"


def _shown(config: "Config") -> list[tuple[str, str]]:
    return [*shown_of_all(config), ("weight of the forward KL", f"{config.train.forward_kl:g}")]


OPD = Objective(
    name="opd",
    refused=(
        Refusal(
            "train.teacher",
            "",
            "train.objective is opd, and train.teacher is not set.",
            "Set train.teacher to the folder or hub id of the teacher's weights.",
        ),
        no_constant_weights("opd"),
    ),
    own_tables=("chunks", "rollouts"),
    learns=Spans(_NO_SPANS),
    summary_sql="SELECT sum(len(response_ids))::BIGINT FROM trajectories",
    summary=_summary,
    frozen="teacher",
    shown=_shown,
)
