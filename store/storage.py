# pyright: strict
"""What the operating system refuses when something is stored: told in one line, and space kept for the last of it."""

import contextlib
import errno
import os
import resource
from collections.abc import Generator
from pathlib import Path

from .errors import StorageError

_FREE = "Free some space there"
OPEN_FILES = "Raise the limit of open files (ulimit -n), or lower teacher.max_concurrency"
"""What to do when there are too many."""
_HINTS = {
    errno.ENOSPC: _FREE,
    errno.EDQUOT: _FREE,
    errno.EROFS: "Mount it writable, or choose another run directory",
    errno.EACCES: "Give yourself permission to write there, or choose another run directory",
    errno.EPERM: "Give yourself permission to write there, or choose another run directory",
    errno.EMFILE: OPEN_FILES,
    errno.ENFILE: OPEN_FILES,
    errno.EFBIG: "Raise the limit of the size of a file (ulimit -f), or choose another disk",
    errno.EIO: "See whether the disk is full or damaged",
}

_PRIMARY_CODE = 0xFF
_OF_SQLITE = {8: errno.EROFS, 10: errno.EIO, 13: errno.ENOSPC, 14: errno.EACCES}
"""SQLITE_READONLY, _IOERR, _FULL, _CANTOPEN. https://www.sqlite.org/rescode.html"""

_IN_WORDS = {
    os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)
} | {"inline_container.cc": errno.EIO}
"""What errors of libraries say that have no number of their own: DuckDB, safetensors and shutil repeat the system's
words; torch names its writer of files, whatever kept that from writing."""

_LONGEST = 200


def storage_error(error: BaseException, path: Path | None = None) -> StorageError | None:
    """The line to show for an error of the system, of SQLite or of another library that stores; None where it is of
    another kind.

    Args:
        path: What was to be stored, where the error itself names nothing.
    """
    number = None if isinstance(error, StorageError) else _number(error)
    named = path or getattr(error, "filename", None)
    if number is None or (number in (errno.EACCES, errno.EPERM) and named is None):
        return None  # without a name, of something else than a file
    said = _words(error, number)
    return StorageError(
        f"{named}: {said}." if named else f"{said}.",
        f"{_HINTS[number]}, then run the same command again.",
    )


def _number(error: BaseException) -> int | None:
    """The system's number of an error for which there is a hint."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno if error.errno in _HINTS else None
    if (code := getattr(error, "sqlite_errorcode", None)) is not None:
        return _OF_SQLITE.get(code & _PRIMARY_CODE)
    said = str(error)
    return next((number for words, number in _IN_WORDS.items() if words in said), None)


def _words(error: BaseException, number: int) -> str:
    """What an error says in a line: its own words where they are one, which may name a file."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said if len(said) <= _LONGEST and "\n" not in said else os.strerror(number)


@contextlib.contextmanager
def storing(path: Path) -> Generator[None]:
    """Tell errors of the system in one line, and what was being stored: a failed write says no name.

    Raises:
        StorageError: in their place.
    """
    try:
        yield
    except BaseException as error:  # torch's CheckpointException is no Exception
        if (told := storage_error(error, path)) is None:
            raise
        raise told from error


def allow_open_files() -> None:
    """Let this process have as many files open as it may: the usual limit is 1024, for the sake of old programs."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS has another limit beside it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Spare:
    """Space kept beside a file for the length of a `with`, for what must still be written once the disk is full.

    Raises:
        StorageError: there is no such space.
    """

    def __init__(self, beside: Path, size: int) -> None:
        self._path = beside.with_name(f".{beside.stem}.spare")
        self._size = size

    def __enter__(self) -> "Spare":
        try:
            with storing(self._path):
                # Random, or a file system that compresses would keep no space for it.
                self._path.write_bytes(os.urandom(self._size))
        except StorageError:
            self.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the space up. On a file system that has become read-only it stays."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
