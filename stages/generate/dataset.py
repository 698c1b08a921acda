"""Rows of a data set, from files, folders or the hub, each as a dict of exact Python values; and what a cell means."""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...store.errors import InputError, first_line
from .files import NAMES, DataFile, Row, format_of, kind_of, rows_of_batches
from .row_filter import Condition

if TYPE_CHECKING:
    import datasets

_BATCH_ROWS = 4096
_SPLIT = re.compile(r"(?:^|[-._/ ])(train|validation|valid|val|dev|test)(?=[-._/ 0-9])")
"""A split in a file's path, as the hub lays out its data sets: train-00000-of-00002.parquet, test.jsonl, dev/0.csv."""


@dataclass(frozen=True)
class Source:
    """Where a data set is, and what the user calls that."""

    names: tuple[str, ...]
    """Files, folders of files, or hub ids."""
    subset: str | None
    split: str
    """Split of a hub data set, or of a folder whose files are called by their splits."""
    setting: str
    """The setting that holds the names: "data.prompts"."""
    kind: str
    """What it is a file of: "prompt"."""
    hub_hint: str
    """What to do where the hub does not give it."""
    folder: Path = Path()
    """Where a relative path is looked for after the current folder."""

    @property
    def label(self) -> str:
        """For messages."""
        return ", ".join(self.names)

    @property
    def is_local(self) -> bool:
        return all(is_local(name, self.folder) for name in self.names)


class _Part(Protocol):
    """One file, or one hub data set."""

    @property
    def name(self) -> str: ...

    def columns(self) -> list[str]: ...

    def rows(self, columns: Collection[str]) -> Iterator[Row]: ...


def is_local(name: str, folder: Path = Path()) -> bool:
    """Whether a name is that of a file or folder, rather than a hub id."""
    return format_of(name) is not None or _located(name, folder).exists()


@dataclass(frozen=True)
class Dataset:
    """A data set that is there; its rows are read when they are asked for."""

    source: Source
    parts: tuple[_Part, ...]

    def columns(self) -> list[str]:
        """The columns of all files, in the order of their first appearance.

        Raises:
            InputError: a file is empty or damaged.
        """
        return list(dict.fromkeys(column for part in self.parts for column in part.columns()))

    def rows(
        self, needs: Mapping[str, tuple[str, str]], condition: str | None = None, also: Collection[str] = ()
    ) -> Iterator[Row]:
        """The rows, one at a time, with exact values; files.py says what that means in each format.

        Args:
            needs: Columns that have to be there; a dot reaches into a struct. Each with the setting that names it and
                what it holds: {"meta.solution": ("data.answer", "answer")}. Other columns may be missing from the rows.
            also: Columns that may be there.
            condition: SQL condition (data.filter); rows that do not meet it are skipped. It costs a pass of its own.

        Raises:
            InputError: a file is empty or damaged, and the message names the line; no row of a file has a needed
                column, which is known after the last row; the condition is no SQL or does not fit the columns.
        """
        rows = chain.from_iterable(_checked(part, needs, also) for part in self.parts)
        if condition is None:
            return rows
        met = Condition(condition, self.source.label, self.columns)
        return compress(rows, met.of(chain.from_iterable(part.rows(met.columns) for part in self.parts)))


def open_dataset(source: Source) -> Dataset:
    """Find a data set.

    Raises:
        InputError: a file is not there or of no known format; a folder does not tell which files are meant; the hub has
            not got it or cannot be reached.
    """
    return Dataset(source, tuple(part for name in source.names for part in _parts_of(name, source)))


def reach(values: Mapping[str, Any], path: str) -> Any:
    """A cell; a dot reaches into a struct. None where there is none."""
    if path in values:
        return values[path]
    value: Any = values
    for field in path.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(field)
    return value


# -- what a cell means


def text_of(row: Row, path: str) -> str:
    """A cell's text; "" where there is none.

    Raises:
        InputError: it is no text.
    """
    value = reach(row.values, path)
    if isinstance(value, str):
        return "" if value.isspace() else value
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _no_text(row, path, kind_of(value), "a text")
    return str(value)


def answer_of(row: Row, path: str, *, integers: bool = False) -> str:
    """A reference answer as text: a text as it is, an object as tests, another value as its JSON (1 apart from 1.0), a
    list of values joined by commas; "" where there is none.

    Args:
        integers: Answers are whole numbers, some written as 025 or 27.0.

    Raises:
        InputError: it is binary.
    """
    value = reach(row.values, path)
    if isinstance(value, dict):
        return tests_of(row, path)
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        return ", ".join(_text(part, row, path) for part in value)
    text = (value if isinstance(value, str) else _text(value, row, path)).strip()
    return _whole(text) if integers else text


def _whole(text: str) -> str:
    if re.fullmatch(r"[+-]?\d+", text):
        return str(int(text))
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def _text(value: Any, row: Row, path: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        raise _no_text(row, path, kind_of(value), "a text")
    if isinstance(value, bool | int | float | list):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def tests_of(row: Row, path: str) -> str:
    """A program's tests as JSON, with their values as they are; "" where there are none.

    Raises:
        InputError: they are neither an object nor a text.
    """
    value = reach(row.values, path)
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, dict):
        raise _no_text(row, path, kind_of(value), "an object, or its JSON as a text")
    # Parquet fills a struct's missing fields with null.
    return json.dumps({key: part for key, part in value.items() if part is not None}, default=str)


def _no_text(row: Row, path: str, found: str, wanted: str) -> InputError:
    return InputError(f"{row.where}, column {path!r}: {found}.", f"Write {wanted} there, or leave the row out.")


# -- files, folders and the hub


def _located(name: str, folder: Path) -> Path:
    """A path as the current folder has it, else as `folder` has it."""
    return Path(name) if Path(name).exists() or not (folder / name).exists() else folder / name


def _parts_of(name: str, source: Source) -> list[_Part]:
    path = _located(name, source.folder)
    # A subset is described in a data set's card, which `datasets` reads.
    if path.is_dir() and source.subset is None and (found := _files_in(path, source.split)):
        return [DataFile(file) for file in found]
    if format_of(name) is not None and not path.is_dir():
        if not path.is_file():
            raise InputError(
                f"The {source.kind} file {path} does not exist.", f"Set {source.setting} to a file that does."
            )
        return [DataFile(path)]
    if path.is_file():
        raise InputError(f"The {source.kind} file {path} is of no known format.", f"Known: {NAMES}.")
    return [_hub(str(path) if path.is_dir() else name, source)]


def _files_in(folder: Path, split: str) -> list[Path]:
    """The data files of a folder and its subfolders, sorted by path: those of the split where file names tell splits
    apart.

    Raises:
        InputError: it is unclear which are meant: they are of other splits, or of several formats.
    """
    files: dict[Path, Path] = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if format_of(path.name) and path.is_file() and not any(part.startswith(".") for part in inside.parts):
            files[inside] = path
    splits = {inside: _SPLIT.search(inside.as_posix()) for inside in files}
    if any(splits.values()) or "[" in split:  # a slice, which only the hub's loader knows
        files = {inside: path for inside, path in files.items() if (found := splits[inside]) and found[1] == split}
        if not files:
            raise InputError(
                f"The folder {folder} has files of other splits than {split!r}.", "Set the split, or name the files."
            )
    if len(formats := sorted({format_of(path.name) or "" for path in files.values()})) > 1:
        raise InputError(
            f"The folder {folder} has files of several formats ({', '.join(formats)}).",
            "Name the files, or put those of one format into a folder of their own.",
        )
    return list(files.values())


@dataclass(frozen=True)
class _HubDataset:
    name: str
    data: "datasets.Dataset"

    def columns(self) -> list[str]:
        return self.data.column_names

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        wanted = [column for column in self.data.column_names if column in columns]
        return rows_of_batches(self.name, self.data.select_columns(wanted).with_format("arrow").iter(_BATCH_ROWS))


def _hub(name: str, source: Source) -> _HubDataset:
    import datasets

    try:
        if (Path(name) / "state.json").is_file():  # what Dataset.save_to_disk writes, which has no splits
            data = datasets.load_from_disk(name)
        else:
            data = datasets.load_dataset(name, source.subset, split=source.split)
    except (OSError, ValueError, RuntimeError) as error:  # for unknown ids, subsets, splits and an unreachable hub
        raise InputError(
            f"{name!r} is no .jsonl, .parquet or .csv file, and the hub did not give it: {first_line(error)}.",
            source.hub_hint,
        ) from error
    assert isinstance(data, datasets.Dataset)
    return _HubDataset(name, data)


def _checked(part: _Part, needs: Mapping[str, tuple[str, str]], also: Collection[str]) -> Iterator[Row]:
    """The rows of a part, and at their end an error for a column that none of them had."""
    missing = dict(needs)
    empty = True
    for row in part.rows(_outer([*needs, *also])):
        if missing:
            missing = {path: about for path, about in missing.items() if not _has(row.values, path)}
        empty = False
        yield row
    if missing:
        columns = part.columns()
        for path, (setting, what) in missing.items():
            if not any(column in columns for column in _outer([path])):
                raise InputError(
                    f"{part.name} has no column {path!r} (it has {', '.join(columns)}).",
                    f"Set {setting} to the {what}'s column.",
                )
            if not empty:
                raise InputError(f"{part.name} has no {path!r} in any row.", f"Set {setting} to the {what}'s column.")


def _outer(paths: Collection[str]) -> set[str]:
    """Columns that hold what the paths reach."""
    return {column for path in paths for column in (path, path.partition(".")[0])}


def _has(values: Mapping[str, Any], path: str) -> bool:
    if path in values:
        return True
    parent, dot, field = path.rpartition(".")
    return bool(dot) and isinstance(inner := reach(values, parent), dict) and field in inner
