"""Append-only Parquet tables whose manifest is the truth.

A part is written under a temporary name, synced, renamed, and then entered with its hash in the next manifest, which is
created and never replaced (commits.py). Readers take the list of files from the newest manifest. A crash between the
rename and the manifest leaves a complete part that no manifest names: the next writer adopts it, since its rows may
have been paid for.

Several workers may fill one table. Each is a worker with a manifest and part names of its own, and never touches what
another one writes; readers see the union, which is complete when all workers say that their share is.
"""

import contextlib
import json
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import commits, files
from .commits import Commit
from .errors import BusyError, ConfigChangedError, TableError
from .schema import SCHEMA_VERSION, TableSpec
from .storage import storing
from .worker import ALONE, Worker

_MOST_TRIES = 100
"""To begin, while another process still commits."""

if TYPE_CHECKING:
    import pyarrow as pa  # brought in by what touches rows: `--help` and `status` look at manifests alone


@dataclass(frozen=True)
class Part:
    """One Parquet file of a table."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a table consists of, and the settings that its rows were made with."""

    table: str
    schema_version: int = SCHEMA_VERSION
    made_with: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = False
    parts: tuple[Part, ...] = ()

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)


class Table:
    """A table in a folder. Reading needs no lock; one process at a time writes a worker: the stage locks it, and where
    the lock does not work, the object that did not begin last is refused at its next commit."""

    def __init__(self, folder: Path, spec: TableSpec, worker: Worker = ALONE, again: str = "") -> None:
        self.folder = folder
        self.spec = spec
        self.again = again
        """The command after which its stage begins anew, where there is one."""
        self.worker = worker
        """What this object writes. It reads all workers."""
        self._last: Commit | None = None
        """What it has committed last, or found when it began to write."""

    # -- reading

    @property
    def manifest(self) -> Manifest:
        """What all workers together say, or an empty manifest.

        Raises:
            TableError: a manifest is unreadable, or written by a newer version.
        """
        manifests = self._manifests()
        if not manifests:
            return Manifest(self.spec.name)
        return Manifest(
            self.spec.name,
            max(manifest.schema_version for manifest in manifests.values()),
            next((m.made_with for m in manifests.values() if m.parts), next(iter(manifests.values())).made_with),
            _all_complete(manifests),
            tuple(part for manifest in manifests.values() for part in manifest.parts),
        )

    def _manifests(self) -> dict[Worker, Manifest]:
        """The manifest of each worker, in the order of their names."""
        return {worker: self._parsed(commit) for worker, commit in commits.newest(self.folder).items()}

    def _parsed(self, commit: Commit) -> Manifest:
        if commit.content is None:
            return Manifest(self.spec.name)
        try:
            raw = json.loads(commit.content)
            parts = tuple(Part(**part) for part in raw.pop("parts"))
            manifest = Manifest(**raw, parts=parts)
        except (ValueError, TypeError, KeyError) as error:
            problem = f"{self.folder / commit.name} is damaged: {error}."
            raise TableError(problem, _restore(self.folder)) from error
        if manifest.schema_version > SCHEMA_VERSION:
            raise TableError(
                f"{self.folder} has schema version {manifest.schema_version}, newer than {SCHEMA_VERSION}.",
                "Upgrade omniopd.",
            )
        return manifest

    @property
    def complete(self) -> bool:
        return self.manifest.complete

    def files(self) -> list[Path]:
        """The table's files, each checked to be there in its full size."""
        paths: list[Path] = []
        for part in self.manifest.parts:
            path = self.folder / part.name
            if not path.is_file():
                raise TableError(f"{path} is missing.", _restore(self.folder))
            if (size := path.stat().st_size) != part.bytes:
                raise TableError(f"{path} is damaged: {size} bytes instead of {part.bytes}.", _restore(self.folder))
            paths.append(path)
        return paths

    def verify(self) -> None:
        """Compare every file with the hash in the manifest.

        Raises:
            TableError: a file is missing or differs.
        """
        for path, part in zip(self.files(), self.manifest.parts, strict=True):
            if files.sha256(path) != part.sha256:
                raise TableError(f"{path} is damaged: its content changed.", _restore(self.folder))

    def require(self, command: str) -> "Table":
        """This table, complete and undamaged, as the input of the next stage.

        Raises:
            TableError: the stage that writes it (`command`) has not finished, or a file is damaged.
        """
        if not self.complete:
            rows = self.manifest.rows
            state = f"holds {rows} rows and is not finished{self._missing_shards()}" if rows else "is empty"
            raise TableError(f"{self.folder} {state}.", f"Run `{command}` first.")
        self.verify()
        return self

    def _missing_shards(self) -> str:
        manifests = self._manifests()
        groups = {worker.count: worker.siblings for worker in manifests if worker.count > 1}
        missing = [
            f"{', '.join(str(s.index) for s in workers if s not in manifests or not manifests[s].complete)} of {count}"
            for count, workers in groups.items()
        ]
        return f" (missing: shard {' and '.join(missing)})" if missing else ""

    def read(self, columns: Sequence[str] | None = None) -> "pa.Table":
        """All rows; a column that an older version did not write is null."""
        import pyarrow as pa

        schema = self.spec.schema
        wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
        parts = [_read_part(path, wanted) for path in self.files()]
        return pa.concat_tables(parts) if parts else pa.Table.from_batches([], wanted)

    def batches(
        self, rows: int, columns: Sequence[str] | None = None, skip: Collection[str] = ()
    ) -> "Iterator[pa.RecordBatch]":
        """Rows in order of the parts, at most `rows` at a time, without holding more than that. `skip`: names of parts
        that are not wanted."""
        import pyarrow.parquet as pq

        for path in self.files():
            if path.name in skip:
                continue
            with pq.ParquetFile(path) as parquet:
                yield from parquet.iter_batches(batch_size=rows, columns=None if columns is None else list(columns))

    def existing_keys(self) -> set[tuple[Any, ...]]:
        """The keys of the rows that exist."""
        table = self.read(self.spec.key)
        return set(zip(*(table[name].to_pylist() for name in self.spec.key), strict=True))

    # -- writing

    def begin(self, made_with: Mapping[str, Any]) -> None:
        """Get ready to write: adopt what a crash left behind, and refuse to mix settings.

        Raises:
            ConfigChangedError: the table has rows that were made with other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take_over(made_with)
        # The only worker tidies up after everyone; a worker leaves alone what another one may be writing right now.
        mine = "*" if self.worker.count == 1 else f"*{self.worker.suffix}"
        for leftover in (f".part-{mine}.parquet.tmp", f".manifest{mine}.json.*.tmp"):
            for path in self.folder.glob(leftover):
                path.unlink(missing_ok=True)
        known = {part.name for part in self.manifest.parts}
        for path in sorted(self.folder.glob(f"part-{mine}.parquet")):
            if path.name not in known:
                self._adopt(path)

    def _take_over(self, made_with: Mapping[str, Any]) -> None:
        """Commit as the one who writes from here on: who wrote before is refused from then on."""
        for _ in range(_MOST_TRIES):
            self._last = None
            own, manifest = self._parsed(self._hold()), self.manifest
            if manifest.parts and dict(manifest.made_with) != dict(made_with):
                raise ConfigChangedError(*_changed(self, manifest.made_with, made_with))
            with contextlib.suppress(BusyError):  # the other one may be quicker this time
                self._commit(replace(own, made_with=dict(made_with)))
                return
        raise commits.superseded(self.folder)

    def _hold(self) -> Commit:
        """What its worker has committed, as this object knows it: what it found when it began to write, or its own last
        commit since."""
        self._last = self._last or commits.newest_of(self.folder, self.worker)
        return self._last

    def _adopt(self, path: Path) -> None:
        """Take a complete part that no manifest names. Rows that were written again since it was left are dropped."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        present = self.existing_keys()
        rows = pq.read_table(path)
        keys = zip(*(rows[name].to_pylist() for name in self.spec.key), strict=True)
        new = [key not in present for key in keys]
        if all(new):
            self._commit(_with(self._parsed(self._hold()), self._describe(path)))
        else:
            self.append(rows.filter(pa.array(new, pa.bool_())))
            path.unlink()

    def append(self, rows: "pa.Table | Sequence[Mapping[str, Any]]") -> Part | None:
        """Commit rows as one part, sorted by key. They are durable when this returns; no rows, no part."""
        if len(rows) == 0:
            return None
        own = self._parsed(self._hold())
        part = self._write(rows)
        self._commit(_with(own, part))
        return part

    def finish(self) -> None:
        """Say that no row of this worker is missing."""
        self._commit(replace(self._parsed(self._hold()), complete=True))

    def replace(self, parts: "Iterable[pa.Table]", made_with: Mapping[str, Any], complete: bool = True) -> None:
        """Put a whole new content in place of the old one, at once. For tables that can be derived again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        written = tuple(self._write_behind(parts))
        self._commit(Manifest(self.spec.name, made_with=dict(made_with), complete=complete, parts=written))
        current = {part.name for part in written}
        for path in self.folder.glob("part-*.parquet"):
            if path.name not in current:
                path.unlink()

    def link(self, source: "Table") -> None:
        """Take over all parts of a finished table that holds what this one would: under the same names, without a
        second copy where the file system has hard links. Parts are never changed, so both stay whole.

        Args:
            source: A table of the same spec, in another folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        for path in source.files():
            mine = self.folder / path.name
            mine.unlink(missing_ok=True)  # of a call that was interrupted
            try:
                mine.hardlink_to(path)
            except OSError:
                shutil.copy2(path, mine)
        files.sync_folder(self.folder)
        self._commit(replace(source.manifest, table=self.spec.name))

    def _write_behind(self, parts: "Iterable[pa.Table]") -> Iterator[Part]:
        """Write each part in a thread while the next one is being made; at most these two are in memory."""
        from concurrent.futures import Future, ThreadPoolExecutor

        with ThreadPoolExecutor(1) as writer:
            last: Future[Part] | None = None
            for part in parts:
                if last:
                    yield last.result()
                last = writer.submit(self._write, part)
            if last:
                yield last.result()

    def _write(self, rows: "pa.Table | Sequence[Mapping[str, Any]]") -> Part:
        import pyarrow as pa
        import pyarrow.parquet as pq

        schema = self.spec.schema
        table: pa.Table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(list(rows), schema=schema)
        table = _sorted(table.select(schema.names).cast(schema), self.spec.key)
        # Time first, so that the names sort as they were written.
        name = f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{self.worker.suffix}.parquet"
        temporary = self.folder / f".{name}.tmp"
        try:
            with storing(self.folder / name):
                pq.write_table(
                    table, temporary, compression="zstd", compression_level=3, row_group_size=self.spec.rows_per_group
                )
                files.replace_durably(temporary, self.folder / name)
        except FileNotFoundError as error:  # taken away by who writes now
            raise commits.superseded(self.folder) from error
        finally:
            temporary.unlink(missing_ok=True)  # where it failed: on a full disk, the ledger needs the space
        return self._describe(self.folder / name)

    def _describe(self, path: Path) -> Part:
        import pyarrow.parquet as pq

        rows = pq.read_metadata(path).num_rows
        return Part(path.name, rows, path.stat().st_size, files.sha256(path))

    def _commit(self, manifest: Manifest) -> None:
        content = (json.dumps(asdict(manifest), indent=1) + "\n").encode()
        self._last = commits.follow(self.folder, self._hold(), content)


def _with(manifest: Manifest, part: Part) -> Manifest:
    return replace(manifest, parts=(*manifest.parts, part))


def _read_part(path: Path, schema: "pa.Schema") -> "pa.Table":
    """The columns of a file that a schema asks for. pyarrow.dataset and pa.table() would do, and import
    pandas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as parquet:
        written = set(parquet.schema_arrow.names)
        rows = parquet.read([name for name in schema.names if name in written])
        length = parquet.metadata.num_rows
    columns = [rows[name] if name in written else pa.nulls(length, schema.field(name).type) for name in schema.names]
    return pa.Table.from_arrays(columns, schema.names).cast(schema)


def _sorted(table: "pa.Table", key: Sequence[str]) -> "pa.Table":
    """The rows by key. Gathering long lists is expensive, so rows that are in order stay where they are."""
    import numpy as np
    import pyarrow.compute

    compute: Any = pyarrow.compute  # its functions are made at import, out of a type checker's sight
    order = compute.sort_indices(table, sort_keys=[(name, "ascending") for name in key])
    in_order = np.array_equal(order.to_numpy(), np.arange(len(table), dtype=np.uint64))
    return table if in_order else table.take(order)


def _all_complete(manifests: Mapping[Worker, Manifest]) -> bool:
    """Whether one whole set of workers (the single worker is a set of one) says that nothing is missing."""
    done = {worker for worker, manifest in manifests.items() if manifest.complete}
    return any(set(worker.siblings) <= done for worker in done)


def _restore(folder: Path) -> str:
    return f"Restore it from a copy, or delete {folder} (its rows are lost) and run the stage again."


def _changed(table: Table, before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str]:
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    changes = ", ".join(f"{key} from {before.get(key)!r} to {now.get(key)!r}" for key in keys)
    problem = f"The config changed under {table.folder}, which has {table.manifest.rows} rows: {changes}."
    if not table.again:
        return problem, "Set it back, or start a new run with `omniopd init`."
    until = "Set it back, at least until the round is done: the next one may differ."
    return problem, f"{until} Or begin here again: `{table.again}`."
