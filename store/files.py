# pyright: strict
"""Durable files: a reader sees the old content or the new one, never a part of it, also after a power cut."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

from .errors import BusyError, StorageError, UsageError
from .storage import storing

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What link(2) says where there are none."""


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    _sync(folder)


def sync_files(folder: Path) -> None:
    """Make a folder's files, and their names, durable."""
    for path in folder.iterdir():
        _sync(path)
    sync_folder(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_durably(temporary: Path, final: Path) -> None:
    """Move a finished file (written, not yet synced) to its name."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(final)
    sync_folder(final.parent)


def write_text(path: Path, text: str) -> None:
    """Write a small file durably.

    Raises:
        StorageError: the system refuses.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with storing(path):
        temporary.write_text(text, encoding="utf-8")
        replace_durably(temporary, path)


def check_target(path: Path) -> None:
    """Refuse what a user names for a file that is to be written, before the work is done.

    Raises:
        UsageError: it is a folder, or in none.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder.", "Name a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}.", "Make it, or name a file in another one.")


@contextlib.contextmanager
def new_folder(folder: Path) -> Generator[Path]:
    """A folder to be filled under a temporary name, which gets its own, durably, when the block ends well.

    Raises:
        UsageError: it exists.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists.", "Choose another folder.")
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    sync_files(temporary)
    temporary.rename(folder)
    sync_folder(folder.parent)


def create(path: Path, content: bytes) -> bool:
    """Write a small file durably, unless it is there already. Returns whether it was written.

    The file is whole as soon as it has its name. Of several processes, on several machines too, one succeeds.

    Raises:
        StorageError: the system refuses, or the file system has no hard links.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    with storing(path):
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            path.hardlink_to(temporary)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno in _NO_LINKS:
                hint = "Put it on a file system that has them: a file that must not be replaced is made by one."
                raise StorageError(f"{path.parent} is on a file system without hard links.", hint) from error
            raise
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    return True


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Whole lines of a file that may be growing; [] where there is none."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]] if path.is_file() else []


def sha256(path: Path) -> str:
    """Hash of a file's content, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def exclusive(path: Path, what: str, patience_s: float = 0.0) -> Generator[None]:
    """Hold a lock file for the length of a `with`; the kernel frees it however the process ends.

    Raises:
        BusyError: another process holds it, still after `patience_s` seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience_s
    with path.open("a") as file:
        while not _locked(file):
            if time.monotonic() >= deadline:
                raise BusyError(f"Another process is running {what}.", "Wait for it, or stop it, and try again.")
            time.sleep(0.05)
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
