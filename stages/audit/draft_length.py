# pyright: strict
"""draft: how long a draft pays. Speculative decoding turned round adapts its draft length likewise."""

import contextlib
import math

from ...method.objectives.registry import objective_of
from ...store.config import Config
from ...store.layout import RunDir
from ...store.sql import connect

_ACCEPTED = """
SELECT sum(accepted / len(ids) * completion_tokens), count(*) FILTER (accepted < len(ids))
FROM drafts JOIN rollouts USING (chunk_id, rollout_index)
WHERE len(ids) > 0
"""


def accepted_lately(run: RunDir, index: int, config: Config) -> float | None:
    """Teacher tokens that the student follows before it rejects one, in the latest round of drafts before this one.

    It is the mean of an exponential distribution from lengths of which those that were not rejected are censored: all
    accepted tokens by the number of rejections.

    Returns:
        Infinity where nothing was rejected; None where there is no such round, or another objective.
    """
    if objective_of(config).weights_from != "drafts":
        return None
    for round_ in reversed(run.rounds()):
        if round_.index < index and round_.drafts.complete:
            with contextlib.closing(connect([round_])) as db:
                ((tokens, rejections),) = db.execute(_ACCEPTED).fetchall()
            if tokens is not None:
                return tokens / rejections if rejections else math.inf
    return None
