# pyright: strict
"""What of a run directory is mirrored, and its content at one moment."""

import contextlib
import json
import os
import sqlite3
import uuid
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import commits, files, ledger_file
from ..errors import MirrorError
from ..layout import RunDir
from ..storage import storing
from .index import Blob

STATE = ".mirror"
"""Folder in a run directory: what is known of its mirror. Not mirrored itself."""

_LEFT_OUT = {STATE, ".ray", ".spill", ".reset", ".ledger.json"}
"""Of the machine, or made again: the ledger says by itself what .ledger.json does."""
_OF_TRACKERS = {"wandb", "mlflow"}
"""What trackers store on this machine changes while it is copied, and they have ways of their own to send it."""
_LEFT_OUT_ENDS = (".tmp", ".lock", ".spare", ".pull", ".waiting.json")
_SMALL = 8 << 20
_MOST_TRIES = 20


@dataclass(frozen=True)
class Source:
    """A file to be mirrored."""

    blob: Blob
    content: Path | bytes
    seen: tuple[int, ...] = ()
    """What the system said of the file when it was hashed: size, time and inode."""

    def whole(self) -> Path | bytes:
        """What to send; a small file is read here, so that it is what its hash says.

        Raises:
            FileNotFoundError: it is not any more what it was.
        """
        if isinstance(self.content, bytes):
            return self.content
        if self.blob.size <= _SMALL:
            content = self.content.read_bytes()
            if Blob.of(content) != self.blob:
                raise FileNotFoundError(self.content)
            return content
        self.check()
        return self.content

    def check(self) -> None:
        """
        Raises:
            FileNotFoundError: as `whole`.
        """
        if isinstance(self.content, Path) and self.seen and _seen(self.content) != self.seen:
            raise FileNotFoundError(self.content)


class Snapshots:
    """The content of a run directory, whose files are hashed once."""

    def __init__(self, run: RunDir, key_file: Path | None = None) -> None:
        self._run = run
        self._key_file = None if key_file is None else key_file.expanduser().absolute()
        self._folder = run.path / STATE
        self._hashes: dict[str, Any] = {}
        """Size, time, inode and hash of each file that was hashed before."""

    @contextlib.contextmanager
    def taken(self) -> Generator[dict[str, Source]]:
        """All files, by their path; those that may change are copied for the length of a `with`.

        Tables are taken first, then the ledger, then the tables are looked at again: so no answer is missed that went
        from the ledger into a table in between, and no table has one that the ledger does not know.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        known = self._folder / "hashes.json"
        self._hashes = json.loads(known.read_bytes()) if known.is_file() else {}
        copy = self._folder / f"ledger-{uuid.uuid4().hex[:8]}.sqlite"
        try:
            for _ in range(_MOST_TRIES):
                before = self._rollouts()
                with contextlib.suppress(FileNotFoundError):  # replaced since it was listed
                    sources = self._files() | self._ledger(copy)
                    if before == self._rollouts():
                        break
            else:
                raise MirrorError(f"{self._run.path} changes too fast to be mirrored.", "Run the same command again.")
            files.write_text(known, json.dumps({path: self._hashes[path] for path in sources if path in self._hashes}))
            yield sources
        finally:
            copy.unlink(missing_ok=True)

    def _rollouts(self) -> list[bytes | None]:
        tables = [round_.rollouts.folder for round_ in self._run.rounds()]
        return [commit.content for folder in tables for commit in commits.newest(folder).values()]

    def _files(self) -> dict[str, Source]:
        found: dict[str, Source] = {}
        for folder, names in _walk(self._run.path):
            where = folder.relative_to(self._run.path).as_posix()
            prefix = "" if where == "." else f"{where}/"
            heads = commits.newest(folder)
            for commit in heads.values():
                content = commit.content or b""
                found[f"{prefix}{commit.name}"] = Source(Blob.of(content), content)
            named = _parts_of(heads)
            for name in names:
                is_table = name.startswith("manifest") or (name.startswith("part-") and name not in named)
                if not (heads and is_table) and (folder / name).absolute() != self._key_file:
                    path = f"{prefix}{name}"
                    found[path] = self._source(path)
        return found

    def _source(self, path: str) -> Source:
        file = self._run.path / path
        seen = _seen(file)
        *before, digest = self._hashes.get(path, [None])
        if tuple(before) != seen:
            digest = files.sha256(file)
            self._hashes[path] = [*seen, digest]
        return Source(Blob(str(digest), seen[0]), file, seen)

    def _ledger(self, copy: Path) -> dict[str, Source]:
        """A copy of the ledger at one moment, whoever writes it; none where there is none."""
        path = self._run.ledger
        if not path.is_file():
            return {}
        copy.unlink(missing_ok=True)
        with (
            storing(copy),
            contextlib.closing(ledger_file.connect(path)) as db,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            db.backup(target)
        return {path.name: Source(Blob(files.sha256(copy), copy.stat().st_size), copy)}


def _walk(run: Path) -> Iterator[tuple[Path, list[str]]]:
    for folder, folders, names in os.walk(run):
        folders[:] = sorted(name for name in folders if not _left_out(name))
        if Path(folder) == run / "metrics":
            folders[:] = [name for name in folders if name not in _OF_TRACKERS]
        yield Path(folder), sorted(name for name in names if not _left_out(name))


def _left_out(name: str) -> bool:
    return name in _LEFT_OUT or name.endswith(_LEFT_OUT_ENDS) or (name.startswith("ledger") and ".sqlite" in name)


def _parts_of(heads: dict[commits.Worker, commits.Commit]) -> set[str]:
    """The parts that a table's manifests name."""
    return {part for commit in heads.values() for part in parts_in(commit.content or b"")}


def parts_in(manifest: bytes) -> dict[str, str]:
    """The hashes of the parts that a manifest names, by their names; none where it is damaged, which the stage that
    reads it says."""
    try:
        return {part["name"]: part["sha256"] for part in json.loads(manifest)["parts"]}
    except (ValueError, KeyError, TypeError):
        return {}


def _seen(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino
