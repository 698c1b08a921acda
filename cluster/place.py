"""How a worker on another machine finds the driver's run, and knows that it is the same one."""

import contextlib
import os
import socket
import uuid
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from ..store import files
from ..store.errors import InputError
from ..store.layout import RunDir

PATIENCE_S = 120.0
"""How long a worker waits for the lock of one that died. An NFSv4 server frees it after the lease, 90 s by default."""


@dataclass(frozen=True)
class Place:
    """Where the driver's run is."""

    run: Path
    """Absolute."""
    folder: Path
    """The driver's current one, from which relative paths of the config count."""
    mark: str
    """Name of a file that the driver made in the run. A copy of the run does not have it."""

    def enter(self) -> RunDir:
        """The run, as seen from a worker, whose current folder becomes the driver's where there is such a one.

        Raises:
            InputError: it is not there.
        """
        import ray

        run = RunDir(self.run)
        if not (run.ray / self.mark).is_file():
            node = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
            seen = "is another folder" if self.run.is_dir() else "is missing"
            raise InputError(
                f"{self.run} {seen} on the node {node}.",
                "Keep the run on a file system that all machines mount at the same path: docs/cluster.md.",
            )
        if self.folder.is_dir():
            os.chdir(self.folder)
        return run


@contextlib.contextmanager
def shared(run: RunDir) -> Generator[Place]:
    """A run to be found by workers, for the length of a `with`."""
    place = Place(run.path.absolute(), Path.cwd(), f"driver-{uuid.uuid4().hex}")
    run.ray.mkdir(parents=True, exist_ok=True)
    mark = run.ray / place.mark
    files.write_text(mark, "")
    try:
        yield place
    finally:
        mark.unlink(missing_ok=True)
