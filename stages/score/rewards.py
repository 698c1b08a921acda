"""grpo: the student's responses graded, and each compared with the other samples of its prompt."""

import contextlib
from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from ...graders.find import in_parallel
from ...graders.verdict import Grader, Verdict
from ...method.advantages import advantages
from ...store.schema import REWARDS
from ..progress import Advance, progress
from .sql import parts, statements

_RESPONSES_A_PART = 4096
"""Graded together; a prompt's samples are always in one part."""


def reward_parts(db: duckdb.DuckDBPyConnection, grader: Grader) -> Iterator[pa.Table]:
    """Rows of the rewards table, all samples of a prompt together."""
    ((total,),) = db.execute("SELECT count(*) FROM trajectories").fetchall()
    with progress("grade", total) as advance:
        for responses in _whole_groups(db):
            yield _rewarded(responses, _grade(grader, responses, advance), grader.name)


def _whole_groups(db: duckdb.DuckDBPyConnection) -> Iterator[pa.Table]:
    """Responses in order of their prompts; a part ends where a prompt ends."""
    held: list[pa.Table] = []
    with contextlib.closing(db.cursor()) as cursor:
        for batch in parts(cursor, statements()["responses"], {}, _RESPONSES_A_PART):
            prompts = batch["prompt_id"].to_numpy()
            # Where the last prompt begins, of which more may follow.
            last = int(np.searchsorted(prompts == prompts[-1], True))
            if held and (last > 0 or held[-1]["prompt_id"][-1].as_py() != prompts[0]):
                yield pa.concat_tables([*held, batch.slice(0, last)])
                held = []
            elif last > 0:
                yield batch.slice(0, last)
            held.append(batch.slice(last))
    if held:
        yield pa.concat_tables(held)


def _grade(grader: Grader, responses: pa.Table, advance: Advance) -> list[Verdict]:
    pairs = zip(responses["response_text"].to_pylist(), responses["answer"].to_pylist(), strict=True)
    return in_parallel(lambda pair: grader.grade(*pair), pairs, lambda: advance(1, ""))


def _rewarded(responses: pa.Table, verdicts: list[Verdict], grader: str) -> pa.Table:
    reward_G = np.array([verdict.correct for verdict in verdicts], dtype=np.float32)
    _, group_G = np.unique(responses["prompt_id"].to_numpy(), return_inverse=True)
    columns: dict[str, Any] = {
        "trajectory_id": responses["trajectory_id"],
        "round": responses["round"],
        "grader": [grader] * len(verdicts),
        "reward": reward_G,
        "advantage": advantages(reward_G, group_G.astype(np.int64)).astype(np.float32),
        "reason": [verdict.reason for verdict in verdicts],
        "extracted": [verdict.extracted for verdict in verdicts],
    }
    return pa.table(columns).cast(REWARDS.schema)
