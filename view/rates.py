"""How fast a stage goes: what it has written, against the time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..store.ledger_read import read_answered
from ..store.table import Part

_RECENT_STEPS = 10


def rows_per_s(parts: Sequence[Part], since: float) -> float | None:
    """Rows of a table a second from a time (Unix, s) to its latest part; None where there is none since."""
    # A part's name begins with the time of its writing, ns.
    times = [(int(part.name.split("-")[1]) / 1e9, part.rows) for part in parts]
    rows = sum(rows for written, rows in times if written > since)
    return rows / max(max(written for written, _ in times) - since, 1e-9) if rows else None


def mean_length(trajectories: Sequence[Path], rows: int) -> float:
    """Response tokens a row. The files' footers tell: the ids are most of the table."""
    import pyarrow.parquet as pq

    files = map(pq.read_metadata, trajectories)
    groups = (metadata.row_group(i) for metadata in files for i in range(metadata.num_row_groups))
    columns = (group.column(i) for group in groups for i in range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema.startswith("response_ids.")) / rows


def answered_tokens_per_s(ledger: Path, round_index: int, since: float) -> float | None:
    """Tokens that the teacher read and wrote, by the ledger: rows come to the table many at a time."""
    tokens, last = read_answered(ledger, round_index, since)
    return tokens / (last - since) if tokens else None


def steps_per_s(steps: Sequence[Mapping[str, Any]]) -> float | None:
    """Optimizer steps a second, of the latest ones."""
    recent = [step["seconds"] for step in steps[-_RECENT_STEPS:]]
    return len(recent) / sum(recent) if sum(recent) else None


def trained_tokens_per_s(steps: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens that are trained on a second, of the latest steps."""
    recent = [step["tokens_per_s"] for step in steps[-_RECENT_STEPS:]]
    return sum(recent) / len(recent) if recent else None
