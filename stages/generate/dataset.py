"""Rows of a data set, from a file or from the hub, as a Polars frame."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...store.errors import InputError

if TYPE_CHECKING:
    import polars as pl

_READERS = {".jsonl": "scan_ndjson", ".parquet": "scan_parquet", ".csv": "scan_csv"}
"""Polars' reader for each kind of file."""


@dataclass(frozen=True)
class Source:
    """Where a data set is, and what the user calls that."""

    name: str
    """A .jsonl, .parquet or .csv file, or a hub id."""
    subset: str | None
    split: str
    setting: str
    """The setting that holds the name: "data.prompts"."""
    kind: str
    """What it is a file of: "prompt"."""
    hub_hint: str
    """What to do where the hub does not give it."""

    @property
    def is_file(self) -> bool:
        return Path(self.name).suffix in _READERS


def read_frame(source: Source) -> "pl.LazyFrame":
    """A data set, still to be collected.

    Raises:
        InputError: the file is not there, is empty or is no such file; the hub has it not or cannot be reached.
    """
    return _scan(source) if source.is_file else _read_hub(source)


def collect(source: Source, frame: "pl.LazyFrame") -> "pl.DataFrame":
    """What is left of a data set after selecting and filtering.

    Raises:
        InputError: a line of the file is damaged.
    """
    import polars as pl

    try:
        return frame.collect()
    except pl.exceptions.ComputeError as error:  # a line further down
        raise _unreadable(source, error) from error


def as_question(value: Any) -> str:
    """Text of a cell; of a chat, the last user message."""
    if isinstance(value, list):
        user = [message["content"] for message in value if message.get("role") == "user"]
        value = user[-1] if user else None
    return "" if value is None or not str(value).strip() else str(value)


def as_answer(value: Any, *, integers: bool = False) -> str:
    """Text of a reference answer; "" where there is none.

    Args:
        integers: Answers are whole numbers, some written as 025 or 27.0.
    """
    if isinstance(value, list):
        return ", ".join(str(part) for part in value)
    text = "" if value is None else str(value).strip()
    if integers or isinstance(value, float):
        try:
            number = float(text)
        except ValueError:
            return text
        return str(int(number)) if number.is_integer() else text
    return text


def as_tests(value: Any) -> str:
    """A program's tests as JSON; "" where there are none."""
    if value is None or isinstance(value, str):
        return value or ""
    # Parquet and JSON Lines fill a struct's missing fields with null.
    return json.dumps({key: part for key, part in value.items() if part is not None})


def cell(column: str) -> "pl.Expr":
    """A column; a dot reaches into a struct."""
    import polars as pl

    outer, *inner = column.split(".")
    expression = pl.col(outer)
    for field in inner:
        expression = expression.struct.field(field)
    return expression


def _scan(source: Source) -> "pl.LazyFrame":
    import polars as pl

    path = Path(source.name)
    if not path.is_file():
        raise InputError(f"The {source.kind} file {path} does not exist.", f"Set {source.setting} to a file that does.")
    if path.stat().st_size == 0:
        raise InputError(f"The {source.kind} file {path} is empty.", f"Write one row a {source.kind}.")
    try:
        frame = getattr(pl, _READERS[path.suffix])(path)
        frame.collect_schema()
    except pl.exceptions.PolarsError as error:
        raise _unreadable(source, error) from error
    return frame


def _unreadable(source: Source, error: Exception) -> InputError:
    reason = str(error).splitlines()[0]
    kind = Path(source.name).suffix[1:]
    return InputError(f"{source.name} cannot be read as {kind}: {reason}.", "Mend or replace the file.")


def _read_hub(source: Source) -> "pl.LazyFrame":
    import datasets
    import polars as pl

    try:
        rows = datasets.load_dataset(source.name, source.subset, split=source.split)
    except (OSError, ValueError, RuntimeError) as error:  # for unknown ids, subsets, splits and an unreachable hub
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(
            f"{source.name!r} is no .jsonl, .parquet or .csv file, and the hub did not give it: {reason}.",
            source.hub_hint,
        ) from error
    assert isinstance(rows, datasets.Dataset)
    frame = rows.to_polars()
    assert isinstance(frame, pl.DataFrame)
    return frame.lazy()
