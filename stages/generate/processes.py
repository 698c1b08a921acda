"""Several engines on one machine: a process each, that fills a shard of the round, and one progress bar for all.

A process is `python -m omniopd.stages.generate RUN --round K --shard i/n`, fresh, because CUDA does not outlive a fork
and a notebook's state is nobody's business. The two talk through pipes, a line at a time:

- It reads its orders from stdin: the config as JSON, and later GO. The end of them means that it is to stop, so it
  does that too where its parent is killed.
- It writes to what was its stdout: a list in JSON, of READY, SAY, GROWTH, ERROR or CRASH and what belongs to it.

What else it prints goes to a log of the run. Ctrl-C in a terminal reaches the parent alone, which stops them.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from ...store import errors
from ...store.config import Config
from ...store.layout import RunDir
from ...store.worker import Worker
from .shown import Growth, bar
from .workers import assign_devices, one_process

GO = "go"
"""Sample: all engines are loaded, and the teacher was looked at."""
READY = "ready"
"""The engine is loaded."""
SAY = "say"
"""A line for the user."""
GROWTH = "growth"
"""The fields of a Growth."""
ERROR = "error"
"""Kind, problem and hint of an OmniopdError."""
CRASH = "crash"
"""Another exception in a line; its traceback is in the log."""

GRACE_S = 15.0
"""How long a process that is to stop may finish a step of its engine, and give back its GPU. Then it is killed."""

_LEFT_BEHIND_S = 5.0
"""How long what a process has started may outlive it, to clean up shared memory. Then it is killed."""


def sample_in_processes(
    run: RunDir,
    index: int,
    config: Config,
    count: int,
    rows: tuple[int, int],
    before: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    """Fill a round's trajectories with `count` workers, each a process that has `generate.tensor_parallel` GPUs of its
    own. If one fails, all stop; what they have committed stays.

    Args:
        rows: How many trajectories the round comes to, and how many are there.
        before: Called once all engines are loaded, before anything is sampled; may refuse.
        say: Hears what the processes say.

    Raises:
        OmniopdError: of the process that failed first.
    """
    with _running(run, index, config, count) as processes:
        told = processes.told(say)
        loading = set(range(count))
        while loading:
            number, kind, _ = next(told)
            if kind in (READY, None):
                loading.discard(number)
        before()
        processes.order(GO)
        with bar(*rows) as shown:
            for number, kind, content in told:
                if kind == GROWTH:
                    shown(Growth(*content), number)


@contextlib.contextmanager
def _running(run: RunDir, index: int, config: Config, count: int) -> Generator["_Processes"]:
    import torch

    run.logs.mkdir(parents=True, exist_ok=True)
    log = run.generate_log(index)
    with _Processes(log) as processes:
        devices = torch.cuda.device_count()
        for worker in Worker(0, count).siblings:
            environment = _environment(devices, config.generate.tensor_parallel, worker)
            processes.start(_command(run, index, worker), environment)
        processes.order(json.dumps(one_process(config).model_dump(mode="json", exclude_unset=True)))
        yield processes


def _command(run: RunDir, index: int, worker: Worker) -> list[str]:
    words = (str(run.path), "--round", str(index), "--shard", str(worker))
    return [sys.executable, "-m", "omniopd.stages.generate", *words]


def _environment(devices: int, each: int, worker: Worker) -> dict[str, str]:
    environment = dict(os.environ)
    if devices:
        assign_devices(environment, devices, each, worker.index)
    else:
        # Each would take all cores.
        environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // worker.count, 1)))
    return environment


class _Process:
    """A process, and what it writes."""

    def __init__(
        self, number: int, command: list[str], environment: dict[str, str], log: Path, lines: "_Lines"
    ) -> None:
        with log.open("ab") as output:
            self.popen = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, env=environment,
                start_new_session=True,
            )  # fmt: skip
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self._stdin, self._stdout = self.popen.stdin, self.popen.stdout
        self._number, self._lines = number, lines
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._reader.start()
        self._watcher.start()

    def _read(self) -> None:
        with self._stdout:
            for line in self._stdout:
                self._lines.put((self._number, line))

    def _watch(self) -> None:
        self.popen.wait()
        # What an engine has started may hold its GPU, and the pipes.
        self._signal(signal.SIGTERM)
        until = time.monotonic() + _LEFT_BEHIND_S
        while self._signal(0) and time.monotonic() < until:
            time.sleep(0.02)
        self._signal(signal.SIGKILL)
        self._reader.join()
        self._lines.put((self._number, b""))

    def order(self, line: str) -> None:
        with contextlib.suppress(OSError):  # it has ended, and why is what it says last
            self._stdin.write(line.encode() + b"\n")
            self._stdin.flush()

    def hang_up(self) -> None:
        """No more orders: stop, unless it has ended."""
        with contextlib.suppress(OSError):
            self._stdin.close()

    def wait(self, until: float) -> None:
        """Until it has ended, or `time.monotonic()` is so far."""
        self._watcher.join(max(until - time.monotonic(), 0))

    def kill(self) -> None:
        """End it now, and what it has started soon after."""
        self.popen.kill()

    def join(self) -> None:
        """Until nothing is left of it."""
        self._watcher.join()

    def _signal(self, number: int) -> bool:
        """To what is left of it. Returns whether there is anything."""
        try:
            os.killpg(self.popen.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


_Lines = queue.SimpleQueue[tuple[int, bytes]]
"""What processes write, by their numbers; empty where one has ended."""


class _Processes:
    """Processes that end with the `with`: by themselves, or because it ends with an exception."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._all: list[_Process] = []
        self._lines: _Lines = queue.SimpleQueue()

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        self._all.append(_Process(len(self._all), command, environment, self._log, self._lines))

    def order(self, line: str) -> None:
        """Tell all."""
        for process in self._all:
            process.order(line)

    def told(self, say: Callable[[str], None]) -> Iterator[tuple[int, str | None, list[Any]]]:
        """What the processes tell, until all have ended: number, kind and content; kind None where one has ended well.

        Raises:
            OmniopdError: one has not.
        """
        running = len(self._all)
        failed: dict[int, errors.OmniopdError] = {}
        while running:
            number, line = self._lines.get()
            if not line:
                self._check(number, failed.get(number))
                running -= 1
                yield number, None, []
                continue
            kind, *content = json.loads(line)
            if kind == SAY:
                say(*content)
            elif kind == ERROR:
                name, *said = content
                failed[number] = getattr(errors, name)(*said)
            elif kind == CRASH:
                failed[number] = self._failed(number, f"failed: {content[0].rstrip('.')}")
            else:
                yield number, kind, content

    def _check(self, number: int, error: errors.OmniopdError | None) -> None:
        code = self._all[number].popen.returncode
        if error is not None:
            raise error
        if code < 0:
            raise self._failed(number, f"was killed by {signal.Signals(-code).name}")
        if code > 0:
            raise self._failed(number, f"ended with exit code {code}")

    def _failed(self, number: int, how: str) -> errors.OmniopdError:
        return errors.OmniopdError(
            f"Process {number} of {len(self._all)} that generate started {how}.",
            f"See {self._log}; the same command resumes.",
        )

    def __enter__(self) -> "_Processes":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for process in self._all:
                process.hang_up()
            until = time.monotonic() + GRACE_S
            for process in self._all:
                process.wait(until)
        finally:  # after another Ctrl-C too
            for process in self._all:
                process.kill()
            for process in self._all:
                process.join()
