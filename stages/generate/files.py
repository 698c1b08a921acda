"""Rows of data files, exactly as they were written: JSON Lines, CSV and Parquet.

JSON values arrive as Python's `json` reads them: integers of any size, 1 apart from 1.0, NaN and Infinity, nested
values untouched; of a key that is there twice, the last counts. CSV cells arrive as text (025 stays 025), an empty one
as None. Parquet values arrive as Arrow converts them. A file name is a name, not a pattern.
"""

import contextlib
import csv
import gzip
import io
import json
import math
import sys
import zlib
from collections.abc import Collection, Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

import orjson

from ...store.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow.parquet as pq

NAMES = ".jsonl, .csv, .parquet, .jsonl.gz, .jsonl.zst"
"""What messages call the supported files."""

_TEXT = (".jsonl", ".csv")
_COMPRESSED = (".gz", ".zst")
_BOM = b"\xef\xbb\xbf"
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 19
"""The shortest integers beyond 64 bits have so many digits; orjson rounds them to a float without a word."""
_BATCH_ROWS = 4096


class Row(NamedTuple):
    """One row of a data set, and where it stands."""

    file: str
    """The file, or the hub id."""
    unit: Literal["line", "row"]
    """What is counted: lines of a text file, rows of a table."""
    number: int
    """From 1."""
    values: dict[str, Any]

    @property
    def where(self) -> str:
        """For messages: "questions.jsonl, line 7"."""
        return f"{self.file}, {self.unit} {self.number}"


def format_of(name: str) -> str | None:
    """The format that a name tells: ".jsonl", ".csv" or ".parquet", compression aside; None for another."""
    path = Path(name)
    if path.suffix in _COMPRESSED:
        inner = Path(path.stem).suffix
        return inner if inner in _TEXT else None
    return path.suffix if path.suffix in (*_TEXT, ".parquet") else None


@dataclass(frozen=True)
class DataFile:
    """A file of one of the supported formats."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def columns(self) -> list[str]:
        """Columns in the order of their first appearance. Of JSON Lines every line is read for it.

        Raises:
            InputError: the file is empty or damaged.
        """
        match format_of(self.name):
            case ".parquet":
                with _parquet(self.path) as file:
                    return list(file.schema_arrow.names)
            case ".csv":
                return next(_csv_records(self.path))[1]
            case _:
                return list(dict.fromkeys(key for row in self.rows(()) for key in row.values))

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        """The rows in order, one at a time.

        Args:
            columns: Those that are needed; Parquet files skip the others.

        Raises:
            InputError: the file is empty or damaged; the message names the line.
        """
        match format_of(self.name):
            case ".parquet":
                return _parquet_rows(self.path, columns)
            case ".csv":
                return _csv_rows(self.path)
            case _:
                return _jsonl_rows(self.path)


# -- text


@contextlib.contextmanager
def _opened(path: Path) -> Generator[BinaryIO]:
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            yield io.BufferedReader(file)
    elif path.suffix == ".zst":
        import pyarrow as pa

        with path.open("rb") as file, pa.CompressedInputStream(file, "zstd") as stream:
            yield io.BufferedReader(stream, 1 << 20)  # pyright: ignore[reportArgumentType]
    else:
        with path.open("rb") as file:
            yield file


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, without a byte order mark."""
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.removeprefix(_BOM) if number == 1 else line
    except (OSError, EOFError, zlib.error) as error:  # damaged or truncated compressed data, no permission
        raise InputError(f"{path} cannot be read: {error}.", "Replace the file.") from error


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        column = len(line[: error.start].decode()) + 1
        raise InputError(
            f"{where}, column {column}: byte 0x{line[error.start]:02x} is not UTF-8.", "Save the file as UTF-8."
        ) from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    name, empty = str(path), True
    for number, line in _lines(path):
        if line and not line.isspace():  # the first is empty where it was a byte order mark alone
            empty = False
            yield Row(name, "line", number, _parse(line, name, number))
    if empty:
        raise InputError(f"{name} is empty.", "Write one JSON object a line.")


def _parse(line: bytes, name: str, number: int) -> dict[str, Any]:
    if _LONG_NUMBER in line.translate(_DIGITS_AS_ZEROS):
        value = _parse_exactly(line, f"{name}, line {number}")
    else:
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            value = _parse_exactly(line, f"{name}, line {number}")
    if not isinstance(value, dict):
        raise InputError(
            f"{name}, line {number}: {kind_of(value)} where an object belongs.", "Write one JSON object a line."
        )
    return value


def _parse_exactly(line: bytes, where: str) -> Any:
    """What orjson rounds or refuses and Python's json reads: integers beyond 64 bits, NaN and Infinity."""
    hint = "Write one JSON object a line."
    text = _decoded(line, where).rstrip()
    try:
        value = json.loads(text, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}, column {error.colno}: not JSON: {error.msg}.", hint) from error
    except RecursionError as error:
        raise InputError(f"{where}: values are nested too deeply.", hint) from error
    except ValueError as error:  # a float or an integer that Python does not convert
        raise InputError(f"{where}: {str(error).partition(';')[0]}.", "Write it as text, in quotes.") from error
    for key, part in value.items() if isinstance(value, dict) else ():
        try:
            json.dumps([key, part], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise InputError(
                f"{where}, column {key!a}: {half} is half of a surrogate pair, not text.", "Correct the text."
            ) from error
    return value


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is beyond a 64-bit float")
    return number


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list"
        case dict():
            return "an object"
        case _:
            return f"a value of type {type(value).__name__}"


def _csv_records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of its first line and the cells of each record, the header first."""
    csv.field_size_limit(sys.maxsize)  # 128 KiB otherwise, and only for the whole process
    lines = (_decoded(line, f"{path}, line {number}") for number, line in _lines(path))
    reader = csv.reader(lines, strict=True)
    first, empty = 1, True
    try:
        for cells in reader:
            if cells:
                empty = False
                yield first, cells
            first = reader.line_num + 1
    except csv.Error as error:
        reason = str(error).partition(" - ")[0]
        raise InputError(f"{path}, line {first}: not CSV: {reason}.", "Quote cells as RFC 4180 does.") from error
    if empty:
        raise InputError(f"{path} is empty.", "Write a header and one row a line.")


def _csv_rows(path: Path) -> Iterator[Row]:
    name, records = str(path), _csv_records(path)
    _, header = next(records)
    if twice := [column for column in header if header.count(column) > 1]:
        raise InputError(f"{name} has two columns {twice[0]!r}.", "Give each column its own name.")
    for number, cells in records:
        if len(cells) != len(header):
            raise InputError(
                f"{name}, line {number}: {len(cells)} cells under a header of {len(header)}.",
                "Quote cells that hold a comma or a line break.",
            )
        filled = [cell or None for cell in cells] if "" in cells else cells
        yield Row(name, "line", number, dict(zip(header, filled, strict=True)))


# -- Parquet


@contextlib.contextmanager
def _parquet(path: Path) -> Generator["pq.ParquetFile"]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # An open file, since Arrow could take a name for a URI.
        with path.open("rb") as file:
            if not file.peek(1):
                raise InputError(f"{path} is empty.", "Replace the file.")
            yield pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet: {first_line(error)}.", "Replace the file.") from error


def _parquet_rows(path: Path, columns: Collection[str]) -> Iterator[Row]:
    with _parquet(path) as file:
        wanted = [column for column in file.schema_arrow.names if column in columns]
        yield from rows_of_batches(str(path), file.iter_batches(_BATCH_ROWS, columns=wanted))


def rows_of_batches(name: str, batches: Iterable[Any]) -> Iterator[Row]:
    """Rows of Arrow tables or record batches."""
    values = chain.from_iterable(batch.to_pylist() for batch in batches)
    return (Row(name, "row", number, row) for number, row in enumerate(values, 1))
