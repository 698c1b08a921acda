"""Rollouts that are recorded as failed, and how they are asked for again. What they cost stays in the ledger."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from ...store.table import Table

_ROWS_PER_PART = 1 << 18


def holds_nothing_else(table: Table) -> bool:
    """Whether a rollouts table has failed rows and no others."""
    batches = table.batches(1024, ["status"])
    return table.manifest.rows > 0 and all(
        status == "failed" for batch in batches for status in batch["status"].to_pylist()
    )


def forget(table: Table, made_with: Mapping[str, Any]) -> None:
    """Take the failed rows out of a rollouts table, which is not complete then."""
    if any("failed" in batch["status"].to_pylist() for batch in table.batches(_ROWS_PER_PART, ["status"])):
        table.replace(_others(table), made_with, complete=False)


def _others(table: Table) -> Iterator[pa.Table]:
    for batch in table.batches(_ROWS_PER_PART):
        kept = [status != "failed" for status in batch["status"].to_pylist()]
        if any(kept):
            yield pa.Table.from_batches([batch]).filter(pa.array(kept, pa.bool_()))
