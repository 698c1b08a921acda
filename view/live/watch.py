# pyright: strict
"""The parts of a page that stays open. Each is built again when the files that it is made of have changed."""

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb

from ...store.errors import OmniopdError
from ...store.layout import STAGES, RunDir
from ..report.parts import Part

_SHARE_OF_A_CORE = 0.1
"""What a part may take while its run goes on: one that is slow to build is built less often."""
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_OPEN = 10.0
"""A page that has not asked for so long is closed, and its run is not looked at."""


@dataclass(frozen=True)
class Source:
    """How a part comes about."""

    build: Callable[[], Part]
    stamp: Callable[[], Hashable]
    """Changes when what the part is made of does. Asked every few seconds, so it must be cheap."""


def rows_of(run: RunDir) -> Hashable:
    """Changes with the tables of the rounds."""
    return _stamps([*run.path.glob("round=*/*/manifest*.json"), *run.path.glob("round=*/scores/*/manifest*.json")])


def figures_of(run: RunDir) -> Hashable:
    """Changes with the tables, the config, training steps and evaluations."""
    measured = [*run.metrics.glob("train-round=*"), *run.path.glob("eval/after=*/*/**/manifest*.json")]
    return rows_of(run), _stamps([run.config_toml, *measured])


def state_of(run: RunDir) -> Hashable:
    """Changes with anything that progress and spend are made of."""
    # Not the -shm beside them: who reads changes it.
    ledger = [run.ledger, run.ledger.with_name(f"{run.ledger.name}-wal")]
    stages = [*run.path.glob("round=*/.*run.json"), *run.path.glob("round=*/policy")]
    # A process that is killed writes nothing.
    states = [run_.state for round_ in run.rounds()[-1:] for stage in STAGES for run_ in round_.stage_runs(stage)]
    return figures_of(run), _stamps([*ledger, *stages]), tuple(states)


def _stamps(paths: Iterable[Path]) -> tuple[tuple[str, int, int], ...]:
    out: list[tuple[str, int, int]] = []
    for path in paths:
        try:
            stat = path.stat()
        except FileNotFoundError:  # gone since it was listed
            continue
        if stat.st_size:  # whoever opens a ledger makes an empty -wal
            out.append((str(path), stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(out))


class LivePage:
    """A page's parts as they are now."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = sources
        self._parts: dict[str, tuple[int, Part]] = {}
        self._stamps: dict[str, Hashable] = {}
        self._not_before: dict[str, float] = {}
        self._asked = 0.0
        self._error = ""

    def since(self, version: int) -> dict[str, Any]:
        """The parts that are newer than a version, and the version that these are."""
        self._asked = time.monotonic()
        parts = dict(self._parts)
        newer = {name: asdict(part) for name, (made, part) in parts.items() if made > version}
        return {
            "version": max((made for made, _ in parts.values()), default=0), "parts": newer, "error": self._error,
            "whole": len(parts) == len(self._sources),
        }  # fmt: skip

    @property
    def is_open(self) -> bool:
        return time.monotonic() - self._asked < _SECONDS_OPEN

    def refresh(self) -> None:
        """Build again what has changed. One thread does."""
        error = ""
        for name, source in self._sources.items():
            begun = time.process_time()
            if time.monotonic() < self._not_before.get(name, 0.0):
                continue
            try:
                if (stamp := source.stamp()) == self._stamps.get(name):
                    continue
                part = source.build()
            except (OmniopdError, duckdb.Error, OSError) as failure:
                # A table that `omniopd reset` takes away meanwhile, say: what was read before stays on the page.
                error = str(failure) if isinstance(failure, OmniopdError) else f"{name}: {type(failure).__name__}"
                continue
            took = time.process_time() - begun
            self._not_before[name] = time.monotonic() + took / _SHARE_OF_A_CORE
            self._stamps[name] = stamp
            # Wall time, so that a page knows nothing of the server that was there before.
            self._parts[name] = time.time_ns() // 1000, part
        self._error = error


class Watcher:
    """A thread that keeps the pages that are open as they should be. While none is, it sleeps."""

    def __init__(self, pages: Iterable[LivePage], failed: Callable[[Exception], object]) -> None:
        self._pages = list(pages)
        self._failed = failed
        self._asked = threading.Event()

    def start(self) -> None:
        # A daemon: Ctrl-C does not wait for a part to be built.
        threading.Thread(target=self._watch, daemon=True).start()

    def wake(self) -> None:
        self._asked.set()

    def _watch(self) -> None:
        try:
            while True:
                self._asked.wait()
                self._asked.clear()
                for page in self._pages:
                    if page.is_open:
                        page.refresh()
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        except Exception as error:  # noqa: BLE001
            self._failed(error)  # the thread that serves raises it
