"""Training sequences of the student's trajectories, a bounded part at a time."""

import contextlib
from collections.abc import Iterator

import duckdb
import pyarrow as pa

from ...method.objectives.record import Spans
from ...store.sections import ScoreConfig
from .sql import SHARDS_A_PART, TOKENS_A_PART, parts, statements, values_of

_BATCH_ROWS = 512


def trajectory_shards(db: duckdb.DuckDBPyConnection, spans: Spans, score: ScoreConfig) -> Iterator[pa.Table]:
    """Rows of the shards table."""
    sql = statements()
    db.execute(f"CREATE TABLE spans AS {spans.sql}", values_of(spans.sql, score))
    db.execute(sql["runs"])
    db.execute("CREATE MACRO filled(value, n) AS list_resize([value], n, value)")
    longest = "SELECT coalesce(max(len(prompt_ids) + len(response_ids)), 1) FROM trajectories"
    ((tokens,),) = db.execute(longest).fetchall()
    rows = max(1, min(SHARDS_A_PART, TOKENS_A_PART // max(tokens, 1)))
    with contextlib.closing(db.cursor()) as cursor:
        for batch in parts(db, sql["trajectories"], {}, rows):
            # DuckDB computes one record batch a thread.
            cursor.register("batch", pa.Table.from_batches(batch.combine_chunks().to_batches(_BATCH_ROWS)))
            yield cursor.sql(sql["shards"]).to_arrow_table()
