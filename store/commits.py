# pyright: strict
"""A table's commits: numbered manifests, each created once.

A commit is the manifest with the next number, made under a temporary name, synced, and linked to its name, which fails
where that name exists. So of two writers of one share, who a lock should have kept apart, one is refused: the one that
did not see the other's last commit. Readers take the manifest of the highest number.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from . import files
from .errors import BusyError
from .worker import Worker

_NUMBER = re.compile(r"manifest-(\d+)\.")
_KEPT = 2
"""The newest commits stay: the last one, and the one that a reader may just have found in the folder."""


@dataclass(frozen=True)
class Commit:
    """What one worker has committed last; number 0 without content where it has not, yet."""

    worker: Worker
    number: int = 0
    content: bytes | None = None

    @property
    def name(self) -> str:
        """A run of before there were numbers has one manifest without, which counts as number 0."""
        number = f"-{self.number:08d}" if self.number else ""
        return f"manifest{number}{self.worker.suffix}.json"


def newest(folder: Path) -> dict[Worker, Commit]:
    """The last commit of each worker, in the order of the workers' names."""
    workers = sorted(_numbers(folder), key=lambda worker: (worker.index, worker.count))
    return {worker: newest_of(folder, worker) for worker in workers}


def newest_of(folder: Path, worker: Worker) -> Commit:
    """The last commit of a worker."""
    while numbers := _numbers(folder).get(worker):
        commit = Commit(worker, max(numbers))
        try:
            return replace(commit, content=(folder / commit.name).read_bytes())
        except FileNotFoundError:
            continue  # two more have followed since it was found
    return Commit(worker)


def tables_in(folder: Path) -> list[Path]:
    """The folders in a folder that have a commit, by name."""
    return sorted({path.parent for path in folder.glob("*/manifest*.json")})


def follow(folder: Path, before: Commit, content: bytes) -> Commit:
    """Commit what follows on a commit. Durable when it returns.

    Raises:
        BusyError: another process has committed since `before`.
        StorageError: the system refuses.
    """
    worker = before.worker
    if newest_of(folder, worker) != before:
        raise superseded(folder)
    after = Commit(worker, before.number + 1, content)
    try:
        created = files.create(folder / after.name, content)
    except FileNotFoundError as error:  # taken away by who writes now
        raise superseded(folder) from error
    if not created:
        raise superseded(folder)
    # Since the look above the number may have been taken and tidied away again, or the table have been begun anew.
    numbers = _numbers(folder)[worker]
    if max(numbers) > after.number:
        raise superseded(folder)
    if before.content is not None and before.number not in numbers:
        (folder / after.name).unlink(missing_ok=True)
        raise superseded(folder)
    for number in sorted(numbers)[:-_KEPT]:
        (folder / Commit(worker, number).name).unlink(missing_ok=True)
    return after


def superseded(folder: Path) -> BusyError:
    """What a writer is told whose share another process has taken over."""
    return BusyError(
        f"Another process writes {folder} now, so this one is refused. Nothing is damaged.",
        "Stop one of the two, and run the command again.",
    )


def _numbers(folder: Path) -> dict[Worker, set[int]]:
    numbers: dict[Worker, set[int]] = {}
    for path in folder.glob("manifest*.json"):
        match = _NUMBER.match(path.name)
        numbers.setdefault(Worker.of_file(path.name), set()).add(int(match[1]) if match else 0)
    return numbers
