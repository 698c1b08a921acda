"""`omniopd sql`: DuckDB over all tables of a run, one query or a shell; the answer as a table, CSV, JSON or Parquet."""

import contextlib
import csv
import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Any, Literal

import duckdb
import orjson
import pyarrow.parquet as pq

from ..store.errors import UsageError
from ..store.layout import RunDir
from ..store.reader import columns, open_reader, views
from .sanitize import printable

Format = Literal["table", "csv", "json", "jsonl", "parquet"]

_ROWS_AT_A_TIME = 4096
_ROWS_SHOWN = 40


def query(run: RunDir, text: str) -> str:
    """The answer of a query as a table for people.

    Raises:
        UsageError: not SQL over the tables of the run.
    """
    with contextlib.closing(open_reader(run)) as db:
        out = io.StringIO()
        answer(db, text, "table", out)
        return out.getvalue()


def write_answer(
    run: RunDir, text: str, format_: Format | None, target: Path | None, *, allow_files: bool = False
) -> None:
    """Answer a query on standard output, or into a file, which is there only when it is whole.

    Args:
        format_: None: what the file's name ends in, and a table for people on standard output.

    Raises:
        UsageError: not SQL over the tables of the run, or the file is inside the run.
    """
    format_ = format_ or _format_of(target)
    with contextlib.closing(open_reader(run, allow_files=allow_files)) as db:
        if target is None:
            _to_stdout(db, text, format_)
            return
        if target.resolve().is_relative_to(run.path.resolve()):
            raise UsageError(f"{target} is inside the run.", "Choose a file elsewhere: sql changes no run.")
        temporary = target.with_name(f".{target.name}.tmp")
        try:
            if format_ == "parquet":
                with temporary.open("wb") as file:
                    _write_parquet(db, text, file)
            else:
                with temporary.open("w", encoding="utf-8", newline="") as file:
                    answer(db, text, format_, file)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def answer(db: duckdb.DuckDBPyConnection, text: str, format_: Format, out: IO[str]) -> None:
    """Write what a query answers; nothing for a statement without an answer.

    Raises:
        UsageError: not SQL over the tables of the run, or something that a reader may not do.
    """
    with _explained(db):
        relation = db.sql(text)
        if relation is None:
            return
        if format_ == "table":
            out.write(printable(_as_table(relation)))
        elif format_ == "csv":
            writer = csv.writer(out)
            writer.writerow(unique(relation.columns))
            writer.writerows([_cell(value) for value in row.values()] for row in _rows(relation))
        elif format_ == "jsonl":
            out.writelines(_json(row) + "\n" for row in _rows(relation))
        else:
            out.write("[")
            for number, row in enumerate(_rows(relation)):
                out.write((",\n " if number else "\n ") + _json(row))
            out.write("\n]\n")


def describe(db: duckdb.DuckDBPyConnection, view: str | None = None) -> str:
    """The views with their docs, and the columns of one, or of all, with types, docs and units.

    Raises:
        UsageError: there is no such view.
    """
    known = views(db)
    if view is not None and view not in dict(known):
        raise UsageError(f"There is no view {view!r}.", f"The views are {', '.join(dict(known))}.")
    blocks: list[str] = []
    for name, doc in known:
        if view in (None, name):
            rows = columns(db, name)
            width, types = (max(len(row[i]) for row in rows) for i in (0, 1))
            lines = [f"  {column:<{width}}  {type_:<{types}}  {text}".rstrip() for column, type_, text in rows]
            blocks.append("\n".join([f"{name}: {doc}", *lines]))
    return "\n\n".join(blocks)


def tables(db: duckdb.DuckDBPyConnection) -> str:
    """One line a view."""
    known = views(db)
    width = max(len(name) for name, _ in known)
    return "\n".join(f"{name:<{width}}  {doc}" for name, doc in known)


def _format_of(target: Path | None) -> Format:
    by_suffix: dict[str, Format] = {".csv": "csv", ".json": "json", ".jsonl": "jsonl", ".parquet": "parquet"}
    if target is None or target.suffix in ("", ".txt"):
        return "table"
    if target.suffix not in by_suffix:
        raise UsageError(f"{target.name} does not tell a format.", f"Name it {', '.join(by_suffix)}, or say --format.")
    return by_suffix[target.suffix]


def _to_stdout(db: duckdb.DuckDBPyConnection, text: str, format_: Format) -> None:
    if format_ == "parquet":
        if sys.stdout.isatty():
            raise UsageError("Parquet is nothing for a terminal.", "Say where it goes: --out FILE.")
        _write_parquet(db, text, sys.stdout.buffer)
    elif sys.stdout.isatty():
        # A model may have written what a terminal would obey. JSON and CSV go elsewhere as they are.
        out = io.StringIO(newline="")
        answer(db, text, format_, out)
        sys.stdout.write(printable(out.getvalue().replace("\r\n", "\n")))
    else:
        answer(db, text, format_, sys.stdout)


def _write_parquet(db: duckdb.DuckDBPyConnection, text: str, file: IO[bytes]) -> None:
    with _explained(db):
        relation = db.sql(text)
        if relation is None:
            raise UsageError("This statement has no answer to write.", "Ask with SELECT.")
        names, reader = unique(relation.columns), relation.to_arrow_reader(_ROWS_AT_A_TIME)
        with pq.ParquetWriter(
            file, reader.schema.empty_table().rename_columns(names).schema, compression="zstd"
        ) as out:
            for batch in reader:
                out.write_batch(batch.rename_columns(names))


def _as_table(relation: duckdb.DuckDBPyRelation) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        relation.show(max_width=shutil.get_terminal_size((160, 24)).columns, max_rows=_ROWS_SHOWN)
    return out.getvalue().rstrip("\n") + "\n"


def _rows(relation: duckdb.DuckDBPyRelation) -> Iterator[dict[str, Any]]:
    names = unique(relation.columns)
    for batch in relation.to_arrow_reader(_ROWS_AT_A_TIME):
        yield from batch.rename_columns(names).to_pylist()


def unique(columns: Sequence[str]) -> list[str]:
    """Names of an answer's columns, each once, as DuckDB's own COPY tells apart those of a join: id, id_1."""
    names: list[str] = []
    for column in columns:
        free = (f"{column}_{n}" for n in count(1))
        names.append(column if column not in names else next(n for n in free if n not in {*names, *columns}))
    return names


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, list | dict) else value


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


@contextlib.contextmanager
def _explained(db: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """DuckDB's own errors as one line with a hint."""
    try:
        yield
    except duckdb.PermissionException as error:
        hint = "This reader opens no files and loads no extensions; --allow-files lets it, and then it can change them."
        raise UsageError(objection(error), hint) from error
    except duckdb.Error as error:
        raise UsageError(objection(error), f"The views are {', '.join(dict(views(db)))}; see --schema.") from error


def objection(error: duckdb.Error) -> str:
    """What DuckDB objects to, without its picture of where."""
    lines = str(error).splitlines()
    # DuckDB says `Binder Error: ... not found` and then, on lines of their own, what was meant and where.
    text = ". ".join(line.rstrip(".!") for line in lines[:2] if line and not line.startswith("LINE "))
    return printable(text if text.endswith("?") else text + ".")
