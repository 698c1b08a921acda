"""draft: the policy of the round reads what the teacher wrote from its prefixes, and says how far it follows."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from ...method.drafts import accepted_tokens, consensus, draft_ids, reach
from ...method.objectives.record import ENDED
from ...method.similarity.metrics import find_metric, make_encoder
from ...store.config import Config
from ...store.errors import InputError
from ...store.model import end_of_turn, load_tokenizer
from ...store.schema import DRAFTS
from ...store.table import Table
from ..progress import progress

if TYPE_CHECKING:
    from ..likelihood import Student

_FORKS_A_PART = 64
"""Forks whose drafts are read together. Always the same ones, so that a pass that was interrupted ends in the same
bits; and all drafts of a fork, which are compared with each other."""

_ASKED = f"""
CREATE OR REPLACE TEMPORARY TABLE asked AS
SELECT
    (dense_rank() OVER (ORDER BY chunk_id) - 1) // {_FORKS_A_PART} AS part,
    chunk_id, rollout_index, prompt_ids || response_ids[:start] AS prefix_ids, text, {ENDED} AS ended
FROM rollouts JOIN chunks USING (chunk_id) JOIN trajectories USING (trajectory_id)
WHERE status = 'ok'
ORDER BY chunk_id, rollout_index
"""

_READ_BY_THE_POLICY = ("chunk_id", "rollout_index", "ids", "logprobs", "entropies", "top_logprobs", "ranks", "reach")


def fill_drafts(
    db: duckdb.DuckDBPyConnection, table: Table, folder: Path, config: Config, settings: Mapping[str, Any]
) -> None:
    """Write the drafts table, where it is not there yet.

    One forward pass of the policy over every draft; a call that was interrupted goes on behind the last part. Under
    another criterion the pass stands, and the drafts are only judged again.

    Args:
        folder: The round's policy.

    Raises:
        InputError: the similarity cannot be used, or no token of the round is accepted.
    """
    manifest = table.manifest
    judge = _Judge.of(config)
    db.execute(_ASKED)
    if dict(manifest.made_with) != settings:
        same_pass = manifest.complete and _pass_of(manifest.made_with) == _pass_of(settings)
        table.replace(_judged_again(db, table, judge) if same_pass else (), settings, complete=same_pass)
    if not table.complete:
        table.begin(settings)
        _read(db, table, folder, config, judge)
        table.finish()


def _pass_of(made_with: Mapping[str, Any]) -> dict[str, Any]:
    """What the forward pass depends on."""
    return {name: value for name, value in made_with.items() if not name.startswith("score.")}


def _read(db: duckdb.DuckDBPyConnection, table: Table, folder: Path, config: Config, judge: "_Judge") -> None:
    present = table.existing_keys()
    ((total,),) = db.execute("SELECT count(*) FROM asked").fetchall()
    if len(present) == total:
        return
    # Seconds of imports.
    from ..likelihood import Student, precision_of

    tokenizer = load_tokenizer(folder)
    tokens_of = partial(draft_ids, tokenizer, end_id=end_of_turn(folder, tokenizer, config))
    student = Student(str(folder), precision_of(config))
    tokens = accepted = 0
    try:
        with progress("read the drafts", total, len(present)) as advance:
            for asked in _asked_parts(db):
                if (asked["chunk_id"][0].as_py(), asked["rollout_index"][0].as_py()) in present:
                    continue
                rows = judge(_read_part(student, asked, tokens_of), asked)
                table.append(rows)
                tokens += sum(map(len, rows["ids"].to_pylist()))
                accepted += sum(rows["accepted"].to_pylist())
                advance(len(rows), f"{accepted / max(1, tokens):.0%} of {tokens:,} tokens accepted")
    finally:
        student.close()


def _asked_parts(db: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    ((count,),) = db.execute("SELECT coalesce(max(part) + 1, 0) FROM asked").fetchall()
    for part in range(count):
        query = "SELECT * FROM asked WHERE part = $part ORDER BY chunk_id, rollout_index"
        yield db.sql(query, params={"part": part}).to_arrow_table()


def _read_part(student: "Student", asked: pa.Table, tokens_of: Callable[..., list[int] | None]) -> pa.Table:
    """The columns of drafts that the criterion says nothing about."""
    from ..likelihood import Read

    rows: list[dict[str, Any]] = [
        {"chunk_id": row["chunk_id"], "rollout_index": row["rollout_index"], "prefix_ids": row["prefix_ids"],
         "ids": tokens_of(row["prefix_ids"], row["text"], ended=row["ended"]) or [], "logprobs": [], "entropies": [],
         "top_logprobs": [], "ranks": [], "reach": None}
        for row in asked.to_pylist()
    ]  # fmt: skip
    told = [row for row in rows if row["ids"]]
    for number, read in student.read([Read(row["prefix_ids"], row["ids"]) for row in told]):
        told[number] |= {
            "logprobs": read.logprobs_T, "entropies": read.entropies_T, "top_logprobs": read.top_logprobs_T,
            "ranks": read.ranks_T, "reach": reach(read.logprobs_T),
        }  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema([DRAFTS.schema.field(name) for name in _READ_BY_THE_POLICY]))


def _judged_again(db: duckdb.DuckDBPyConnection, table: Table, judge: "_Judge") -> Iterator[pa.Table]:
    columns = ", ".join(_READ_BY_THE_POLICY)
    db.from_arrow(table.read(_READ_BY_THE_POLICY)).create_view("read_before", replace=True)
    for asked in _asked_parts(db):
        db.register("asked_part", asked)
        query = f"SELECT {columns} FROM read_before SEMI JOIN asked_part USING (chunk_id, rollout_index)"
        yield judge(db.sql(f"{query} ORDER BY chunk_id, rollout_index").to_arrow_table(), asked)


@dataclass(frozen=True)
class _Judge:
    """Adds to what the policy read how far it follows, and how far the drafts of a fork agree."""

    config: Config
    agreement: Callable[..., np.ndarray]

    @classmethod
    def of(cls, config: Config) -> "_Judge":
        return cls(config, partial(consensus, encoder=make_encoder(config), metric=find_metric(config.score)))

    def __call__(self, read: pa.Table, asked: pa.Table) -> pa.Table:
        """Rows of the drafts table.

        Args:
            asked: What was read, in the same order.
        """
        names = ("logprobs", "entropies", "top_logprobs", "ranks")
        lists = zip(*(read[name].to_pylist() for name in names), strict=True)
        accepted = [accepted_tokens(self.config.score, *map(np.array, columns)) for columns in lists]
        _, fork_D = np.unique(asked["chunk_id"].to_numpy(), return_inverse=True)
        agreement_D = self.agreement(fork_D, asked["text"].to_pylist(), asked["ended"].to_numpy())
        rows = read.append_column("accepted", pa.array(accepted, pa.int32()))
        rows = rows.append_column("consensus", pa.array(agreement_D, pa.float32()))
        return rows.select(DRAFTS.schema.names).cast(DRAFTS.schema)


def refuse_none_accepted(db: duckdb.DuckDBPyConnection, config: Config) -> None:
    """Stop before a round without a token to learn.

    Raises:
        InputError: what the teacher wrote was empty, or the student rejected all of it at once.
    """
    ((drafts, told, accepted),) = db.execute(
        "SELECT count(*), count(*) FILTER (len(ids) > 0), count(*) FILTER (accepted > 0) FROM drafts"
    ).fetchall()
    if accepted:
        return
    if not told:
        raise InputError(
            f"The teacher wrote nothing that the student could learn: {drafts} drafts, none with a token of it.",
            "Look at the answers with `omniopd inspect RUN`, and at teacher.max_tokens and teacher.continuation.",
        )
    score = config.score
    raise InputError(
        f"The student rejects all {told} drafts at their first token ({score.accept}, threshold {score.threshold:g}).",
        "Set a milder score.accept_threshold or score.accept and run `omniopd score` again, which asks nobody; or lower"
        " teacher.temperature for the next rollouts.",
    )
