"""draft: how long a draft pays, from what the student made of those of the round before."""

import contextlib

import numpy as np

from ...method.objectives.registry import objective_of
from ...store.config import Config
from ...store.layout import RunDir
from .price import find_rates

_FOLLOWED = """
SELECT accepted / len(ids) * completion_tokens AS followed, completion_tokens AS drafted, prompt_tokens AS read
FROM drafts JOIN rollouts USING (chunk_id, rollout_index)
WHERE len(ids) > 0 AND completion_tokens > 0 AND prompt_tokens IS NOT NULL
"""


def draft_tokens(run: RunDir, index: int, config: Config) -> int | None:
    """The longest draft, teacher tokens, that would have brought nearly the most accepted tokens for its price in the
    latest round of drafts before this one. None where there is no such round, or the objective is another."""
    if objective_of(config).weights_from != "drafts":
        return None
    from ...method.drafts import paying_length  # Polars, and DuckDB: `plan` of any other objective needs neither
    from ...store.sql import connect

    for round_ in reversed(run.rounds()):
        if round_.index < index and round_.drafts.complete:
            with contextlib.closing(connect([round_])) as db:
                rows = np.array(db.execute(_FOLLOWED).fetchall(), dtype=np.float64).reshape(-1, 3)
            if len(rows):
                followed_D, drafted_D, read_D = rows.T
                rates = find_rates(config.teacher)
                price = rates.input / rates.output if rates.output else 1.0
                return paying_length(followed_D, drafted_D, price * float(read_D.mean()))
    return None
