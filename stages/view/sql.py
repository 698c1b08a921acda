"""`omniopd sql`: one query over all tables of a run, read-only."""

import contextlib

import duckdb

from ...store.errors import UsageError
from ...store.layout import RunDir
from ...store.sql import connect

_READS = {
    duckdb.StatementType.SELECT,
    duckdb.StatementType.EXPLAIN,
    duckdb.StatementType.RELATION,
}


def query(run: RunDir, text: str) -> str:
    """The answer of a query as a table for people.

    Raises:
        UsageError: not SQL, or not a single statement that only reads.
    """
    with contextlib.closing(connect(run.rounds())) as db:
        try:
            kinds = [statement.type for statement in duckdb.extract_statements(text)]
            if len(kinds) != 1 or kinds[0] not in _READS:
                raise UsageError("sql takes one statement that reads.", 'Example: omniopd sql RUN "SUMMARIZE scores".')
            return str(db.sql(text))
        except duckdb.Error as error:
            tables = ", ".join(
                name for (name,) in db.execute("SELECT view_name FROM duckdb_views() WHERE NOT internal").fetchall()
            )
            raise UsageError(f"{str(error).splitlines()[0]}", f"The tables are {tables}.") from error
