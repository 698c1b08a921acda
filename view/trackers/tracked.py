# pyright: strict
"""Tell trackers about a run while a command works on it."""

import contextlib
import json
import sys
from collections.abc import Generator, Iterable
from types import TracebackType

import duckdb

from ...store import files
from ...store.config import Config
from ...store.errors import BudgetReached, BusyError, OmniopdError, first_line, without_credentials
from ...store.layout import RunDir
from ...store.reader import open_reader
from ...store.repeat import repeated
from ..status import read_status
from .points import chunk_tables, live_points, round_points, settled
from .sent import Sent
from .sinks import TrackerError, is_local, open_sink, place_of

SECONDS_BETWEEN_LOOKS = 15.0


@contextlib.contextmanager
def tracked(run: RunDir, config: Config) -> Generator[None]:
    """Around a command: tell the trackers of run.trackers what comes about, now and then and when it ends, and what
    other processes left untold before it. A tracker that fails on the way is named in a line, and stops nothing.

    Raises:
        InputError: before the command, a tracker is not installed, cannot be reached or wants a login.
    """
    with contextlib.ExitStack() as stack:
        told = _begin(run, config, config.run.trackers, stack)

        def look() -> None:
            for tracker in told.values():
                tracker.tell(last=False)

        if told:
            stack.enter_context(repeated(look, SECONDS_BETWEEN_LOOKS, "trackers"))
        yield
    with contextlib.ExitStack() as stack:  # whoever told the others when this one began may have ended before it
        _begin(run, config, [name for name in config.run.trackers if name not in told], stack)


def _begin(run: RunDir, config: Config, names: Iterable[str], stack: contextlib.ExitStack) -> "dict[str, _Tracker]":
    """The trackers that no other command on this run tells. One is enough: it reads what all of them write."""
    trackers: dict[str, _Tracker] = {}
    for name in names:
        told = run.tracked(name)
        try:
            stack.enter_context(files.exclusive(told.with_suffix(".lock"), f"{name} of {run.path}"))
        except BusyError:
            continue
        trackers[name] = stack.enter_context(_Tracker(run, config, name))
    return trackers


class _Tracker:
    """One tracker of one run. One thread at a time calls it; at the end of the block it is told all."""

    def __init__(self, run: RunDir, config: Config, name: str) -> None:
        self._run, self._config = run, config
        told = run.tracked(name)
        if is_local(name) and not (run.metrics / name).is_dir():
            told.unlink(missing_ok=True)  # on another machine, or deleted
        self._sent = Sent.load(told, place_of(name))
        self._sink = open_sink(name, run, self._sent.id, _settings(config))
        self._sent.save()
        self._settled: list[str] = []
        self._complained = False
        sys.stderr.write(f"{name}: {self._sink.where}\n")

    def __enter__(self) -> "_Tracker":
        return self

    def __exit__(self, _: type | None, error: BaseException | None, __: TracebackType | None) -> None:
        self.tell(last=True)
        with self._complaining():
            self._sink.close(failed=error is not None and not isinstance(error, BudgetReached))

    def tell(self, *, last: bool) -> None:
        """Send what is new; the figures of rounds only if a stage has finished, or at the last time."""
        with self._complaining():
            status = read_status(self._run, self._config)
            points, tables = live_points(self._run, status), []
            done = settled(self._run, status)
            if last or done != self._settled:
                with contextlib.closing(open_reader(self._run, left_out=[])) as db:
                    points += round_points(db, status)
                    tables = chunk_tables(db, status)
            news = self._sent.news(points)
            self._sink.send(news)
            for point in news:
                self._sent.told(point)
            for table in self._sent.new_tables(tables):
                self._sink.send_table(table)
                self._sent.told(table)
            self._settled = done
        self._sent.save()

    @contextlib.contextmanager
    def _complaining(self) -> Generator[None]:
        try:
            yield
        except (OmniopdError, duckdb.Error, OSError) as error:
            # A server that is away, or a table that `omniopd reset` takes away meanwhile: the next look tells it all.
            if not self._complained:
                what = (
                    str(error)
                    if isinstance(error, TrackerError)
                    else f"The trackers were not told: {first_line(error)}."
                )
                sys.stderr.write(f"omniopd: {what}\n")
            self._complained = True


def _settings(config: Config) -> dict[str, object]:
    """The config's keys, without passwords in addresses."""
    return json.loads(without_credentials(json.dumps(config.by_key())))
