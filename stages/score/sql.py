"""The statements of score.sql, and answers of DuckDB a part at a time."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from ...store.sections import ScoreConfig

TOKENS_A_PART = 1 << 22
"""Bounds the shards that are built and written together; each is a few lists as long as its trajectory."""
SHARDS_A_PART = 8192


def statements() -> dict[str, str]:
    """The named statements of score.sql."""
    text = Path(__file__).with_name("score.sql").read_text(encoding="utf-8")
    named = (part.partition("\n") for part in text.split("-- name: ")[1:])
    return {name.strip(): body for name, _, body in named}


def values_of(query: str, score: ScoreConfig) -> dict[str, Any]:
    """The keys of [score] that a statement names."""
    values = score.model_dump()
    return {name: values[name] for name in re.findall(r"\$(\w+)", query)}


def parts(db: duckdb.DuckDBPyConnection, query: str, values: Mapping[str, Any], rows: int) -> Iterator[pa.Table]:
    """What a query answers, at most about `rows` rows at a time."""
    for batch in db.sql(query, params=values).to_arrow_reader(rows):
        yield pa.Table.from_batches([batch])
