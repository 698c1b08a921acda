# pyright: strict
"""Durable files: a reader sees the old content or the new one, never a part of it, also after a power cut."""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

from .errors import BusyError
from .storage import storing


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
