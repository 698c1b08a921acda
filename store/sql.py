"""DuckDB over the tables: one view per table, with the docs and units of its columns."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from .layout import RoundDir
from .schema import ALL_SCORES, TABLES, TableSpec


def connect(rounds: Sequence[RoundDir]) -> duckdb.DuckDBPyConnection:
    """An in-memory database whose views are the tables of the given rounds, as their manifests say.

    Raises:
        TableError: a file is missing or damaged.
    """
    db = duckdb.connect()
    db.execute("SET preserve_insertion_order = false")
    for spec in TABLES.values():
        create_view(
            db, spec, [path for r in rounds for table in r.tables if table.spec is spec for path in table.files()]
        )
    create_view(db, ALL_SCORES, [path for r in rounds for table in r.all_scores for path in table.files()])
    return db


def limit(db: duckdb.DuckDBPyConnection, memory_gb: float, threads: int | None, spill: Path) -> None:
    """Bound what a database takes of the machine.

    Args:
        threads: None: one a core.
        spill: Folder for what does not fit into memory.
    """
    db.execute(f"SET memory_limit = '{memory_gb}GB'")
    db.execute(f"SET temp_directory = {quoted(str(spill))}")
    if threads is not None:
        db.execute(f"SET threads = {threads}")


def create_view(db: duckdb.DuckDBPyConnection, spec: TableSpec, paths: Sequence[Path]) -> None:
    """A view of a table's files under its name, in place of an older one, with the docs and units of its columns."""
    if paths:
        files = ", ".join(quoted(str(path)) for path in paths)
        # The files of an older version may lack a column, which is null then; the folder's name must not become one.
        source = f"read_parquet([{files}], hive_partitioning = false, union_by_name = true)"
        db.execute(f"CREATE OR REPLACE VIEW {spec.name} AS SELECT *{_absent(db, spec, paths, source)} FROM {source}")
    else:
        columns = ", ".join(f'NULL::{_duckdb_type(db, spec, name)} AS "{name}"' for name in spec.schema.names)
        db.execute(f"CREATE OR REPLACE VIEW {spec.name} AS SELECT {columns} WHERE false")
    comment(db, spec.name, spec.doc, [(field.name, *doc_and_unit(field)) for field in spec.schema])


def _absent(db: duckdb.DuckDBPyConnection, spec: TableSpec, paths: Sequence[Path], source: str) -> str:
    """What a query has to add for the columns that none of the files has."""
    names: set[str] = set(spec.schema.names)
    if names <= set(pq.read_schema(paths[-1]).names):
        return ""
    present = {str(name) for name, *_ in db.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()}
    missing = [name for name in spec.schema.names if name not in present]
    return "".join(f', NULL::{_duckdb_type(db, spec, name)} AS "{name}"' for name in missing)


def doc_and_unit(field: pa.Field) -> tuple[str, str]:
    """What a column's metadata says of it; "" for what it does not say."""
    metadata = field.metadata or {}
    return metadata.get(b"doc", b"").decode(), metadata.get(b"unit", b"").decode()


def comment(db: duckdb.DuckDBPyConnection, view: str, doc: str, columns: Iterable[tuple[str, str, str]]) -> None:
    """Write the doc of a view, and name, doc and unit of its columns, where DuckDB shows them."""
    db.execute(f"COMMENT ON VIEW {view} IS {quoted(doc)}")
    for name, text, unit in columns:
        db.execute(f'COMMENT ON COLUMN {view}."{name}" IS {quoted(f"{text} [{unit}]" if unit else text)}')


def _duckdb_type(db: duckdb.DuckDBPyConnection, spec: TableSpec, name: str) -> str:
    empty = spec.schema.empty_table().select([name])
    return str(db.from_arrow(empty).types[0])


def quoted(text: str) -> str:
    """A string as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"
