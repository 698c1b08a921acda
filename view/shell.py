"""The shell of `omniopd sql`: statements end with `;`, words that begin with a dot are its own commands."""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb

from ..store.errors import UsageError
from ..store.layout import RunDir
from ..store.reader import columns, open_reader, views
from .sql import Format, answer, describe, tables, write_answer

_HELP = """.tables          the views and what they hold
.schema [VIEW]   columns with types, docs and units
.quit            or exit, or Ctrl-D
Statements end with a semicolon or an empty line.
Temporary tables and macros are yours; the run cannot be changed from here."""


def run_sql(
    run: RunDir, query: str | None, format_: Format | None, out: Path | None, *, schema: bool, allow_files: bool
) -> None:
    """What `omniopd sql` does: show the schema, answer the query or what comes in on standard input, or be a shell."""
    if schema:
        with contextlib.closing(open_reader(run)) as db:
            print_(describe(db, query))
    elif query is None and sys.stdin.isatty():
        shell(run, allow_files=allow_files)
    else:
        write_answer(run, sys.stdin.read() if query is None else query, format_, out, allow_files=allow_files)


_BARE = ("exit", "quit", "help")
"""Words that are no SQL, and what other shells end by."""


def shell(run: RunDir, read: Callable[[str], str] = input, *, allow_files: bool = False) -> None:
    """Read statements and answer them until the end of the input."""
    with contextlib.closing(open_reader(run, allow_files=allow_files)) as db:
        _complete(db)
        print_(f"{run.path}, read-only. A statement ends with ; or an empty line. .tables, .schema, .help; exit ends.")
        statement = ""
        while True:
            try:
                line = read("      -> " if statement else "omniopd> ")
            except EOFError:
                print_("")
                return
            except KeyboardInterrupt:
                print_("")
                statement = ""
                continue
            if not statement and (line.strip().startswith(".") or line.strip(" ;") in _BARE):
                if line.split()[0].strip(".;") in ("quit", "exit"):
                    return
                _command(db, line)
                continue
            statement += line + "\n"
            if line.rstrip().endswith(";") or (not line.strip() and _is_whole(statement)):
                _answer(db, statement)
                statement = ""
            elif not statement.strip():
                statement = ""


def _is_whole(statement: str) -> bool:
    """Whether a text without a semicolon is a statement, and not the part of one before an empty line."""
    try:
        return bool(duckdb.extract_statements(statement))
    except duckdb.ParserException:
        return False


def print_(text: str) -> None:
    sys.stdout.write(text + "\n")


def _answer(db: duckdb.DuckDBPyConnection, statement: str) -> None:
    try:
        answer(db, statement, "table", sys.stdout)
    except UsageError as error:
        print_(str(error))
    except KeyboardInterrupt:
        print_("interrupted")


def _command(db: duckdb.DuckDBPyConnection, line: str) -> None:
    name, *rest = line.split()
    try:
        if name == ".tables":
            print_(tables(db))
        elif name == ".schema":
            print_(describe(db, rest[0] if rest else None))
        else:
            print_(_HELP)
    except UsageError as error:
        print_(str(error))


def _complete(db: duckdb.DuckDBPyConnection) -> None:
    """Tab completes names of views and columns, where Python has readline."""
    try:
        import readline
    except ImportError:
        return
    names = [name for name, _ in views(db)]
    words = sorted({*names, *(column for name in names for column, *_ in columns(db, name)), ".tables", ".schema"})

    def complete(text: str, state: int) -> str | None:
        matches = [word for word in words if word.startswith(text)]
        return matches[state] if state < len(matches) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" \t\n,()=<>")
    readline.parse_and_bind("tab: complete")
