"""What is still to be asked of a round: an anti-join and two sorts in DuckDB, which spill instead of filling memory."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from ...store.config import Config
from ...store.layout import RoundDir
from ...store.ledger import Budget
from ...store.sql import connect, limit
from .teacher import max_tokens_for

_ROWS_AT_A_TIME = 1024

_TODO = """
CREATE VIEW todo AS
WITH present AS (SELECT chunk_id, list(rollout_index) AS present FROM rollouts GROUP BY chunk_id),
cut AS (
    SELECT chunk_id, trajectory_id, start, "end", anchor_entropy, prefix_text,
        list(length(prefix_text)) OVER (
            PARTITION BY trajectory_id ORDER BY start ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS cuts
    FROM chunks
)
SELECT cut.*, question, prompt_text, coalesce(present, []) AS present
FROM cut JOIN trajectories USING (trajectory_id) LEFT JOIN present USING (chunk_id)
"""
_BY_ENTROPY = "SELECT * FROM todo WHERE len(present) < $n ORDER BY anchor_entropy DESC, chunk_id"


@dataclass(frozen=True)
class Work:
    """A chunk, and which of its N rollouts are missing."""

    chunk_id: str
    trajectory_id: str
    question: str
    prompt_text: str
    prefix: str
    missing: tuple[int, ...]
    max_tokens: int
    cuts: tuple[int, ...] = ()
    """Lengths of the trajectory's shorter prefixes."""


class Todo:
    """The missing work of a round, as its tables were when this was made."""

    def __init__(self, db: duckdb.DuckDBPyConnection, config: Config) -> None:
        self._db = db
        self._config = config
        db.execute(_TODO)

    @property
    def chunks(self) -> int:
        """Chunks that lack a rollout."""
        query = f"SELECT count(*) FROM ({_BY_ENTROPY})"
        return int(self._db.execute(query, {"n": self._config.teacher.rollouts}).fetchall()[0][0])

    def affordable(self, left: Budget, worst_case: Callable[[Work], tuple[int, int]]) -> int:
        """How many chunks, in falling order of entropy, the budget covers at their worst case.

        Args:
            worst_case: Nano-dollars and tokens of a chunk.
        """
        nusd = tokens = count = 0
        for work in self._rows(_BY_ENTROPY):
            more_nusd, more_tokens = worst_case(work)
            nusd, tokens = nusd + more_nusd, tokens + more_tokens
            if (left.nusd is not None and nusd > left.nusd) or (left.tokens is not None and tokens > left.tokens):
                break
            count += 1
        return count

    def most_uncertain(self, chunks: int) -> Iterator[Work]:
        """So many chunks of the highest entropy. A trajectory's prefixes are nested: they come together and shortest
        first, so that a prefix cache reads the trajectory once instead of M times."""
        return self._rows(f"SELECT * FROM ({_BY_ENTROPY} LIMIT {chunks}) ORDER BY trajectory_id, start")

    def _rows(self, query: str) -> Iterator[Work]:
        n = self._config.teacher.rollouts
        # A cursor of its own: rows are read while the connection answers other questions.
        with contextlib.closing(self._db.cursor()) as cursor:
            for batch in cursor.sql(query, params={"n": n}).to_arrow_reader(_ROWS_AT_A_TIME):
                yield from (self._work(row, n) for row in batch.to_pylist())

    def _work(self, row: Mapping[str, Any], n: int) -> Work:
        missing = tuple(i for i in range(n) if i not in row["present"])
        return Work(
            row["chunk_id"], row["trajectory_id"], row["question"], row["prompt_text"], row["prefix_text"], missing,
            max_tokens_for(self._config, row["end"] - row["start"]), tuple(row["cuts"] or ()),
        )  # fmt: skip


@contextlib.contextmanager
def open_todo(round_: RoundDir, config: Config, spill: Path) -> Iterator[Todo]:
    """The missing work of a round.

    Args:
        spill: Folder for what does not fit into memory.
    """
    with contextlib.closing(connect([round_])) as db:
        limit(db, config.score.memory_gb, config.score.threads, spill)
        yield Todo(db, config)


def keys_present(round_: RoundDir, chunk_ids: Iterable[str]) -> set[tuple[str, int]]:
    """Rollouts of these chunks that are in the table."""
    with contextlib.closing(connect([round_])) as db:
        query = "SELECT chunk_id, rollout_index FROM rollouts WHERE list_contains($ids, chunk_id)"
        return {(str(c), int(i)) for c, i in db.execute(query, {"ids": sorted(set(chunk_ids))}).fetchall()}
