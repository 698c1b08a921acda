# pyright: strict
"""The one who writes a run's mirror.

Indexes are numbered and created once, like a table's commits: who did not write the last one, or pull it, is refused.
Blobs go before the index that names them, so a mirror is whole at any moment, and a push that was killed leaves at most
blobs that nobody names.
"""

import contextlib
import json
import socket
import uuid
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import files, ledger_file
from ..config import Config
from ..errors import BusyError, ConfigError, MirrorError, without_credentials
from ..layout import RunDir
from ..ledger import Budget, Cover
from ..ledger_read import Totals, read_totals
from .index import INDEXES, Blob, Block, Index
from .places import Place, open_place
from .snapshot import STATE, Snapshots, Source

Advance = Callable[[int, str], None]
"""Call with how many are newly done and a short note."""

Progress = Callable[[int], contextlib.AbstractContextManager[Advance]]
"""Shows a job of so many files."""

_AT_ONCE = 8
_MOST_TRIES = 20
_PATIENCE_S = 600.0
"""For another process of this run on this machine, which writes an index."""
_KEPT = 2
"""Indexes: the last one, and the one before it, which somebody may be pulling."""


@contextlib.contextmanager
def unseen(total: int) -> Generator[Advance]:
    """No progress to be seen."""
    yield lambda done, note: None


def mirror_of(run: RunDir, config: Config) -> "Mirror | None":
    """The mirror of a run; None where the config names none.

    Raises:
        ConfigError: its address is none, or obstore is not installed.
    """
    url = config.run.mirror
    if url is not None and "://" not in url:
        path = Path(url).expanduser()
        if not path.is_absolute() or path.is_relative_to(run.path.absolute()):
            problem = f"run.mirror = {url!r} is not the absolute path of a folder outside of the run."
            raise ConfigError(problem, "Set such a one.")
    keys = config.teacher.api_key_file
    return None if url is None else Mirror(run, url, Path(keys) if keys else None)


def cover_of(run: RunDir, config: Config, round_index: int) -> Cover | None:
    """What a round's ledger tells before it reserves; None where the run has no mirror."""
    mirror = mirror_of(run, config)
    return None if mirror is None else mirror.cover(round_index, config.teacher.model)


@dataclass(frozen=True)
class Pushed:
    """What a push has sent."""

    number: int
    files: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.files} blobs, {self.bytes / 1e6:.1f} MB sent; index {self.number}"


class Mirror:
    """A run's mirror, to be written."""

    def __init__(self, run: RunDir, url: str, key_file: Path | None = None) -> None:
        """
        Args:
            key_file: Is left out, should it be in the run directory.

        Raises:
            ConfigError: the address is none, or obstore is not installed.
        """
        self._run = run
        self._url = without_credentials(url)
        self._place = open_place(url)
        self._snapshots = Snapshots(run, key_file)
        self._folder = run.path / STATE

    def begin(self) -> None:
        """Become the writer: one index more, after which every other writer is refused.

        Raises:
            MirrorError: it is another run's, or was written by somebody else since; or it cannot be reached.
        """
        with self._writing() as head:
            self._follow(head)

    def push(self, progress: Progress = unseen) -> Pushed:
        """Send what the mirror does not have, and then the index.

        Raises:
            MirrorError: as `begin`.
        """
        for _ in range(_MOST_TRIES):
            with contextlib.suppress(FileNotFoundError), self._snapshots.taken() as sources:
                return self._push(sources, progress)
        raise MirrorError(f"The files of {self._run.path} change faster than they are sent.", "Push again later.")

    def _push(self, sources: dict[str, Source], progress: Progress) -> Pushed:
        with self._writing() as head:
            pass
        sent = self._send(sources, head.blobs, progress)
        with self._writing() as head:
            # What an earlier index had may have been tidied away since.
            sent |= self._send(sources, head.blobs, unseen)
            now = {path: source.blob for path, source in sources.items()}
            totals = read_totals(self._run.ledger)
            if totals.spoken_for_nusd < head.charged_nusd or totals.spoken_for_tokens < head.charged_tokens:
                raise MirrorError(
                    f"{self._run.ledger} knows of less spending than its copy in {self._url}.",
                    f"Restore it from there (omniopd pull {self._url} RUN), or set run.mirror to another place.",
                )
            block = self._block_now(head.block, totals)
            if (now, block) != (dict(head.files), head.block):
                charged = {"charged_nusd": totals.charged_nusd, "charged_tokens": totals.charged_tokens}
                head = self._follow(head, files=now, block=block, **charged)
        return Pushed(head.number, len(sent), sum(blob.size for blob in sent))

    def cover(self, round_index: int, teacher: str) -> Cover:
        """For a ledger: reserves in the mirror, a block at a time, before the ledger reserves for requests."""
        block = Block()

        def cover(nusd: int, tokens: int, budget: Budget) -> None:
            nonlocal block
            if not block.covers(nusd, tokens):
                with self._writing() as head:
                    grown = head.block.grown(nusd, tokens, budget, round_index, teacher)
                    block = self._follow(head, block=grown).block

        return cover

    # -- blobs

    def _send(self, sources: dict[str, Source], known: set[Blob], progress: Progress) -> set[Blob]:
        """Send the blobs that are neither known nor there. Returns those that were sent."""
        new = {source.blob: source for source in sources.values() if source.blob not in known}
        if not new:
            return set()
        done = 0

        def send(source: Source) -> Blob | None:
            if self._place.has(source.blob.name):
                return None
            self._place.put(source.blob.name, source.whole())
            source.check()
            return source.blob

        sent: set[Blob] = set()
        with progress(len(new)) as advance, ThreadPoolExecutor(_AT_ONCE) as pool:
            for blob in pool.map(send, new.values()):
                if blob is not None:
                    sent.add(blob)
                    done += blob.size
                advance(1, f"{done / 1e6:.1f} MB")
        return sent

    def _block_now(self, before: Block, totals: Totals) -> Block:
        """What the run has spent, exactly where nobody is spending."""
        spent = replace(before, nusd=totals.spoken_for_nusd, tokens=totals.spoken_for_tokens)
        try:
            with files.exclusive(self._run.ledger.with_name(ledger_file.LOCK), "an audit"):
                return spent
        except BusyError:
            return replace(before, nusd=max(before.nusd, spent.nusd), tokens=max(before.tokens, spent.tokens))

    # -- indexes

    @contextlib.contextmanager
    def _writing(self) -> Generator[Index]:
        """The last index, while no other process of this machine writes one. A new mirror gets its first.

        Raises:
            MirrorError: it is not this run's, or not the one that this copy of the run wrote or pulled.
        """
        with files.exclusive(self._folder / "lock", f"a push of {self._run.path}", _PATIENCE_S):
            state = read_state(self._run)
            head = newest(self._place, self._url)
            if head is None:
                head = self._follow(Index(state.run or uuid.uuid4().hex, 0))
            elif head.run != state.run:
                raise MirrorError(
                    f"{self._url} is the mirror of another run, last written by {head.host}.",
                    f"Set run.mirror to another place; or go on with that run: omniopd pull {self._url} RUN.",
                )
            elif head.number != state.number:
                if head.nonce != state.pending:
                    raise self._superseded(head)
                write_state(self._run, State(head.run, head.number))  # killed just after it was written
            yield head

    def _follow(self, head: Index, **changes: Any) -> Index:
        """Write the next index, and forget what only those before the last two had."""
        after = head.next(uuid.uuid4().hex, socket.gethostname(), **changes)
        write_state(self._run, State(after.run, head.number, after.nonce))
        content = after.to_json()
        # An answer that got lost on its way makes the client try again, and find its own.
        if not self._place.create(after.name, content) and self._place.get(after.name) != content:
            raise self._superseded(newest(self._place, self._url) or after)
        names = self._place.names(INDEXES)
        if names[-1] != after.name or (head.number and head.name not in names):
            raise self._superseded(newest(self._place, self._url) or after)
        write_state(self._run, State(after.run, after.number))
        for name in names[:-_KEPT]:
            self._forget(name, after.blobs | head.blobs)
        return after

    def _forget(self, name: str, kept: set[Blob]) -> None:
        content = self._place.get(name)
        old: set[Blob] = set() if content is None else Index.of_json(content).blobs
        self._place.delete([*(blob.name for blob in old - kept), name])

    def _superseded(self, head: Index) -> MirrorError:
        return MirrorError(
            f"{self._url} was written by {head.host} (index {head.number}) since this copy of the run wrote or pulled"
            " it, so this one is refused. The run here is whole.",
            f"Stop one of the two, and go on with the other; or begin from the mirror: omniopd pull {self._url} RUN.",
        )


def newest(place: Place, url: str) -> Index | None:
    """The last index of a mirror; None where there is none.

    Raises:
        MirrorError: it is damaged, or of a newer version.
    """
    while names := place.names(INDEXES):
        if (content := place.get(names[-1])) is None:
            continue  # two more have followed since it was listed
        try:
            return Index.of_json(content)
        except ValueError as error:
            raise MirrorError(f"{url} is no mirror: {names[-1]}: {error}.", "Set another address.") from error
    return None


@dataclass(frozen=True)
class State:
    """What a copy of a run knows of its mirror."""

    run: str = ""
    number: int = 0
    """Of the index that it wrote or pulled last."""
    pending: str = ""
    """Nonce of the index that it was about to write."""


def read_state(run: RunDir) -> State:
    path = run.path / STATE / "state.json"
    return State(**json.loads(path.read_bytes())) if path.is_file() else State()


def write_state(run: RunDir, state: State) -> None:
    folder = run.path / STATE
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "state.json", json.dumps(state.__dict__) + "\n")
