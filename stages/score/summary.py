"""One line about what a round is trained on."""

import duckdb

from ...method.objectives.registry import objective_of
from ...store.config import Config
from ...store.layout import RoundDir
from .sql import values_of


def summary(db: duckdb.DuckDBPyConnection, round_: RoundDir, config: Config) -> str:
    """What a round's training sequences rest on, and how many there are."""
    objective = objective_of(config)
    query = objective.summary_sql
    (row,) = db.execute(query, values_of(query, config.score)).fetchall()
    return f"{objective.summary(row, config.score)}; {round_.shards.manifest.rows} training sequences"
