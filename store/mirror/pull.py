# pyright: strict
"""`omniopd pull`: a run from its mirror, every file compared with its hash."""

import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from .. import files
from ..errors import InputError, MirrorError, without_credentials
from ..layout import RunDir
from ..ledger import NANO, Ledger, Reservation, Settlement
from .index import Blob, Block, Index
from .places import Place, open_place
from .snapshot import parts_in
from .writer import Progress, State, newest, unseen, write_state

_AT_ONCE = 8
_MOST_TRIES = 5


@dataclass(frozen=True)
class Pulled:
    """What a pull has restored."""

    run: Path
    index: Index
    lost: Block
    """What was reserved in the mirror and is not in its ledger, so that it counts as spent."""

    def __str__(self) -> str:
        size = sum(blob.size for blob in self.index.files.values()) / 1e6
        counted = (
            f"; {self.lost.tokens:,} tokens and ${self.lost.nusd / NANO:.4f} count as spent, which the ledger there did"
            " not know yet"
            if self.lost.nusd or self.lost.tokens
            else ""
        )
        return f"{len(self.index.files):,} files, {size:.1f} MB restored into {self.run} and verified{counted}"


def pull(url: str, run: Path, progress: Progress = unseen) -> Pulled:
    """Restore a run into a folder that does not exist. Killed on the way, it goes on when it is called again.

    Raises:
        InputError: the folder exists.
        MirrorError: there is no run, a file differs from its hash, or it cannot be reached.
    """
    if run.exists() and (not run.is_dir() or any(run.iterdir())):
        raise InputError(f"{run} exists.", "Choose another folder, or move it away.")
    place, shown = open_place(url), without_credentials(url)
    # It gets its name when it is whole.
    begun = run.with_name(f".{run.name}.pull")
    begun.mkdir(parents=True, exist_ok=True)
    for _ in range(_MOST_TRIES):
        if (index := newest(place, shown)) is None:
            raise MirrorError(f"There is no run at {shown}.", "See whether the address is right.")
        if _fetch_all(place, shown, index, begun, progress):
            break
    else:
        raise MirrorError(f"{shown} is being written faster than it is read.", "Run the same command again.")
    _compare_manifests(index.files, begun, shown)
    copy = RunDir(begun)
    lost = _charge(copy, index)
    write_state(copy, State(index.run, index.number))
    if run.is_dir():
        run.rmdir()
    begun.rename(run)
    files.sync_folder(run.parent)
    return Pulled(run, index, lost)


def _fetch_all(place: Place, url: str, index: Index, folder: Path, progress: Progress) -> bool:
    """Make a folder hold the files of an index, and no others. False: some are gone, since newer ones came."""
    for path in folder.rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in index.files:
            path.unlink()

    def fetch(item: tuple[str, Blob]) -> bool:
        path, blob = item
        return _fetch(place, url, blob, folder / PurePosixPath(path))

    with progress(len(index.files)) as advance, ThreadPoolExecutor(_AT_ONCE) as pool:
        for found in pool.map(fetch, index.files.items()):
            if not found:
                pool.shutdown(cancel_futures=True)
                if newest(place, url) == index:
                    raise MirrorError(f"{url} has lost files of its index.", "Pull from a copy of it.")
                return False
            advance(1, "")
    return True


def _fetch(place: Place, url: str, blob: Blob, target: Path) -> bool:
    if target.is_file() and target.stat().st_size == blob.size and files.sha256(target) == blob.sha256:
        return True
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    if not place.fetch(blob.name, temporary):
        return False
    if files.sha256(temporary) != blob.sha256:
        temporary.unlink()
        raise MirrorError(f"{url}: {blob.name} is damaged.", "Pull from a copy of it.")
    files.replace_durably(temporary, target)
    return True


def _compare_manifests(found: Mapping[str, Blob], folder: Path, url: str) -> None:
    """What a table's manifest names is there with the hash that it says."""
    for path in found:
        if PurePosixPath(path).name.startswith("manifest") and path.endswith(".json"):
            where = PurePosixPath(path).parent
            for name, sha256 in parts_in((folder / path).read_bytes()).items():
                blob = found.get((where / name).as_posix())
                if blob is None or blob.sha256 != sha256:
                    raise MirrorError(
                        f"{url}: {where / name} is not what its table's manifest says.", "Pull from a copy of it."
                    )


def _charge(run: RunDir, index: Index) -> Block:
    """Count what may have been spent after the copy of the ledger was made. Returns how much that is."""
    if not (run.ledger.is_file() or index.block.nusd or index.block.tokens):
        return Block()
    with contextlib.closing(Ledger(run.ledger)) as ledger:
        totals = ledger.totals()
        lost = replace(
            index.block,
            nusd=max(0, index.block.nusd - totals.spoken_for_nusd),
            tokens=max(0, index.block.tokens - totals.spoken_for_tokens),
        )
        if lost.nusd or lost.tokens:
            request_id = f"{ledger.run_id}-lost-{index.number}"
            ledger.commit([Reservation(request_id, lost.round, lost.teacher, lost.nusd, lost.tokens)], [])
            ledger.commit([], [Settlement(request_id, "unknown")])
    return lost
