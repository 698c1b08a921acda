"""What is still to be asked of a round: an anti-join and two sorts in DuckDB, which spill instead of filling memory."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ...method.stopping import StoppingRule
from ...store.config import Config
from ...store.conversation import Conversation
from ...store.layout import RoundDir
from ...store.ledger import Budget
from ...store.sql import connect, limit
from .forecast import Shape

_ROWS_AT_A_TIME = 1024

_TODO = """
CREATE VIEW todo AS
WITH present AS (SELECT chunk_id, list(rollout_index) AS present FROM rollouts GROUP BY chunk_id),
cut AS (
    SELECT chunk_id, trajectory_id, start, "end", anchor_entropy, prefix_text, chunk_text, prior,
        list(length(prefix_text)) OVER (
            PARTITION BY trajectory_id ORDER BY start ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS cuts
    FROM chunks
)
SELECT cut.*, question, messages, tools, prompt_text, coalesce(present, []) AS present,
    coalesce(target_count, $n) AS target_count, phi
FROM cut JOIN trajectories USING (trajectory_id) LEFT JOIN present USING (chunk_id) LEFT JOIN judged USING (chunk_id)
"""
_BY_ENTROPY = "SELECT * FROM todo WHERE len(present) < target_count ORDER BY anchor_entropy DESC, chunk_id"
_ANSWERS = """
SELECT chunk_id, any_value(chunk_text) AS chunk_text, any_value(prior) AS prior, list(rollout_index) AS indices,
    list(CASE WHEN status IN ('ok', 'empty') THEN text END) AS texts
FROM rollouts JOIN chunks USING (chunk_id) GROUP BY chunk_id HAVING count(*) < $n
"""
_JUDGED = pa.schema(
    [
        ("chunk_id", pa.string()),
        ("target_count", pa.int32()),
        ("phi", pa.list_(pa.struct([("index", pa.int32()), ("phi", pa.float64())]))),
    ]
)


Longest = Callable[[int], int]
"""Student tokens of a chunk to the teacher tokens to ask for."""


@dataclass(frozen=True)
class Work:
    """A chunk, and which of its rollouts, up to N or the most of it, are missing."""

    chunk_id: str
    trajectory_id: str
    conversation: Conversation
    prompt_text: str
    prefix: str
    missing: tuple[int, ...]
    max_tokens: int
    cuts: tuple[int, ...] = ()
    """Lengths of the trajectory's shorter prefixes."""
    chunk_text: str = ""
    prior: float = 1.0
    phi: Mapping[int, float | None] = field(default_factory=dict)
    """Similarity of the rollouts that are there, where that decides how many more are wanted."""


class Todo:
    """The missing work of a round, as its tables were when this was made."""

    def __init__(self, db: duckdb.DuckDBPyConnection, longest: Longest, rule: StoppingRule) -> None:
        self._db = db
        self._longest = longest
        self._rule = rule
        db.execute(
            "CREATE TABLE judged (chunk_id VARCHAR, target_count INTEGER, phi STRUCT(index INTEGER, phi DOUBLE)[])"
        )
        if len(rule.checkpoints) > 1:
            self._judge()
        db.execute(_TODO.replace("$n", str(rule.most)))

    def _judge(self) -> None:
        """Write down how many rollouts each chunk wants that has some and not all."""
        with contextlib.closing(self._db.cursor()) as cursor:
            for batch in cursor.sql(_ANSWERS, params={"n": self._rule.most}).to_arrow_reader(_ROWS_AT_A_TIME):
                rows = batch.to_pylist()
                texts = [text for row in rows for text in row["texts"]]
                values = iter(self._rule.phi([row["chunk_text"] for row in rows for _ in row["texts"]], texts))
                judged: list[dict[str, Any]] = []
                for row in rows:
                    phi = dict(zip(row["indices"], values, strict=False))
                    target_count = self._rule.target_count(phi, row["prior"])
                    judged.append({"chunk_id": row["chunk_id"], "target_count": target_count,
                                   "phi": [{"index": i, "phi": value} for i, value in phi.items()]})  # fmt: skip
                self._db.register("judged_batch", pa.Table.from_pylist(judged, schema=_JUDGED))
                self._db.execute("INSERT INTO judged SELECT * FROM judged_batch")

    @property
    def chunks(self) -> int:
        """Chunks that lack a rollout."""
        query = f"SELECT count(*) FROM ({_BY_ENTROPY})"
        return int(self._db.execute(query).fetchall()[0][0])

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
        # A cursor of its own: rows are read while the connection answers other questions.
        with contextlib.closing(self._db.cursor()) as cursor:
            for batch in cursor.sql(query).to_arrow_reader(_ROWS_AT_A_TIME):
                yield from map(self._work, batch.to_pylist())

    def _work(self, row: Mapping[str, Any]) -> Work:
        missing = tuple(i for i in range(self._rule.most) if i not in row["present"])
        asked = Conversation.read(row["messages"], row["tools"], row["question"])
        return Work(
            row["chunk_id"], row["trajectory_id"], asked, row["prompt_text"], row["prefix_text"], missing,
            self._longest(row["end"] - row["start"]), tuple(row["cuts"] or ()), row["chunk_text"],
            row["prior"], {answer["index"]: answer["phi"] for answer in row["phi"] or ()},
        )  # fmt: skip


@contextlib.contextmanager
def open_todo(round_: RoundDir, config: Config, longest: Longest, rule: StoppingRule, spill: Path) -> Iterator[Todo]:
    """The missing work of a round.

    Args:
        longest: See `shape_of`.
        spill: Folder for what does not fit into memory.
    """
    with contextlib.closing(connect([round_])) as db:
        limit(db, config.score.memory_gb, config.score.threads, spill)
        yield Todo(db, longest, rule)


def shape_of(round_: RoundDir, longest: Longest) -> Shape:
    """The size of a round's chunks, in student tokens.

    Args:
        longest: Tokens of a chunk to the teacher tokens that are asked for.
    """
    query = """
    WITH sizes AS (
        SELECT count(*) AS chunks, sum(len(prompt_ids) + start) AS prefixes, max(len(prompt_ids) + start) AS longest
        FROM chunks JOIN trajectories USING (trajectory_id) GROUP BY trajectory_id
    )
    SELECT sum(chunks), sum(prefixes), sum(longest) FROM sizes
    """
    with contextlib.closing(connect([round_])) as db:
        ((chunks, prefixes, new),) = db.execute(query).fetchall()
        lengths = db.execute('SELECT "end" - start, count(*) FROM chunks GROUP BY ALL').fetchall()
    asked = sum(longest(int(tokens)) * int(count) for tokens, count in lengths)
    return Shape(int(chunks), int(prefixes), int(new), asked)


def prefixes_of(round_: RoundDir, chunk_ids: Iterable[str]) -> dict[str, str]:
    """Prefixes of these chunks."""
    with contextlib.closing(connect([round_])) as db:
        query = "SELECT chunk_id, prefix_text FROM chunks WHERE list_contains($ids, chunk_id)"
        return {str(c): str(p) for c, p in db.execute(query, {"ids": sorted(set(chunk_ids))}).fetchall()}


def keys_present(round_: RoundDir, chunk_ids: Iterable[str]) -> set[tuple[str, int]]:
    """Rollouts of these chunks that are in the table."""
    with contextlib.closing(connect([round_])) as db:
        query = "SELECT chunk_id, rollout_index FROM rollouts WHERE list_contains($ids, chunk_id)"
        return {(str(c), int(i)) for c, i in db.execute(query, {"ids": sorted(set(chunk_ids))}).fetchall()}
