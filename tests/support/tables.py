"""A table's newest manifest, as tests change it."""

import json
from pathlib import Path
from typing import Any

from omniopd.store import commits
from omniopd.store.worker import ALONE, Worker


def newest(folder: Path, worker: Worker = ALONE) -> Path:
    """The file of a worker's last commit."""
    return folder / commits.newest_of(folder, worker).name


def undo(folder: Path, worker: Worker = ALONE) -> None:
    """Leave a table as a crash does just before its last commit."""
    newest(folder, worker).unlink()


def edit(folder: Path, change: dict[str, Any]) -> None:
    """Change keys of the newest manifest in its place."""
    path = newest(folder)
    path.write_text(json.dumps(json.loads(path.read_bytes()) | change))
