"""One of several processes that fill a round: what `omniopd generate` starts, by the protocol of processes.py.

The command for people, who have no pipe to it, is `omniopd generate RUN --shard i/n`.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Generator
from dataclasses import astuple
from pathlib import Path
from typing import IO, Any

from ...store.config import Config
from ...store.errors import OmniopdError
from ...store.layout import RunDir
from ...store.storage import storage_error
from ...store.worker import Worker
from .processes import CRASH, ERROR, GO, GRACE_S, GROWTH, READY, SAY
from .shown import Growth, Tell

_SECONDS_BETWEEN_TELLS = 0.1
"""An engine's steps are shorter."""


class _Parent:
    """The process that started this one."""

    def __init__(self, orders: IO[bytes], ears: IO[str]) -> None:
        self._orders = orders
        self._ears = ears
        self._go = threading.Event()
        self._stopped = False

    def config(self) -> Config:
        """The first order. The others are heard from here on."""
        tree = json.loads(self._orders.readline() or b"{}")
        threading.Thread(target=self._obey, daemon=True).start()
        return Config.of_tree(tree)

    def _obey(self) -> None:
        for line in self._orders:
            if line.strip() == GO.encode():
                self._go.set()
        self._stopped = True
        self._go.set()
        # As Ctrl-C ends every command. It interrupts system calls too.
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(GRACE_S)
        os.killpg(os.getpid(), signal.SIGKILL)

    def tell(self, kind: str, *content: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # it is gone: _obey hears that
            self._ears.write(json.dumps([kind, *content]) + "\n")
            self._ears.flush()

    def ready(self) -> None:
        """Wait until all others are."""
        self.tell(READY)
        self._go.wait()
        self._end_if_stopped()

    def _end_if_stopped(self) -> None:
        """A library may have swallowed the signal, in the middle of an import, say."""
        if self._stopped:
            raise KeyboardInterrupt

    def say(self, line: str) -> None:
        self.tell(SAY, line)

    @contextlib.contextmanager
    def show(self, total: int, done: int) -> Generator[Tell]:
        """Counts are the parent's business, which hears of growth several times a second."""
        untold, last = Growth(), time.monotonic()

        def tell(growth: Growth) -> None:
            nonlocal untold, last
            self._end_if_stopped()
            untold = untold.then(growth)
            if time.monotonic() - last > _SECONDS_BETWEEN_TELLS:
                self.tell(GROWTH, *astuple(untold))
                untold, last = Growth(), time.monotonic()

        yield tell
        self.tell(GROWTH, *astuple(untold))


def main() -> int:
    """Fill a shard, and return the process's exit code."""
    # A shell's `&` has SIGINT ignored, and a process inherits that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog=f"python -m {__package__}", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--shard", type=Worker.parse, required=True)
    arguments = parser.parse_args()
    # Files of their own: whatever libraries print to stdout is for the log, and they inherit nothing of these.
    parent = _Parent(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)
    try:
        config = parent.config()
        from .stage import generate

        generate(
            RunDir(arguments.run), arguments.round, config, arguments.shard,
            before=parent.ready, say=parent.say, show=parent.show,
        )  # fmt: skip
    except KeyboardInterrupt:
        # The interpreter's end is where libraries print what was cut off.
        os._exit(130)
    except OmniopdError as error:
        return _report(parent, error)
    except Exception as error:
        if (told := storage_error(error)) is not None:
            return _report(parent, told)
        parent.tell(CRASH, traceback.format_exception_only(error)[-1].strip())
        raise
    return 0


def _report(parent: _Parent, error: OmniopdError) -> int:
    parent.tell(ERROR, type(error).__name__, error.problem, error.hint)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
