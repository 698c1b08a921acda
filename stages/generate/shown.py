"""Responses as an engine gives them, while a progress bar says how fast they grow."""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from ..progress import Advance, progress
from .engine import Engine, Request, Response, Sampling


@dataclass(frozen=True)
class Growth:
    """What the sampling has come to since it was told last."""

    running: int = 0
    """Responses in work now."""
    tokens: int = 0
    """That responses grew by."""
    finished: int = 0
    """Responses."""
    length: int = 0
    """Tokens of the finished ones."""
    cut: int = 0
    """Finished ones that were cut off at the limit."""

    def then(self, later: "Growth") -> "Growth":
        """Both together."""
        return Growth(
            later.running,
            self.tokens + later.tokens,
            self.finished + later.finished,
            self.length + later.length,
            self.cut + later.cut,
        )


Tell = Callable[[Growth], None]
"""Hears how responses grow."""

Show = Callable[[int, int], AbstractContextManager[Tell]]
"""Begins to show a job: how many responses there are to be, and how many there are."""


def sampled(engine: Engine, requests: Sequence[Request], sampling: Sampling, tell: Tell) -> Iterator[Response]:
    """What the engine samples, each as soon as it is done; `tell` also hears of those that still grow."""
    running = 0

    def pulse(now: int, tokens: int) -> None:
        nonlocal running
        running = now
        tell(Growth(running, tokens))

    for response in engine.generate(requests, sampling, pulse):
        length = len(response.ids_T)
        tell(Growth(running, 0, 1, length, int(response.finish_reason == "length")))
        yield response


@contextlib.contextmanager
def bar(total: int, done: int) -> Generator["Shown"]:
    """The progress of `generate`."""
    with progress("generate", total, done) as advance:
        yield Shown(advance)


class Shown:
    """The state of the sampling in a few words beside a progress bar: one engine's, or the sum over several."""

    def __init__(self, advance: Advance) -> None:
        self._advance = advance
        self._start = time.monotonic()
        self._running: dict[int, int] = {}
        self._sum = Growth()

    def __call__(self, growth: Growth, engine: int = 0) -> None:
        self._running[engine] = growth.running
        self._sum = self._sum.then(growth)
        self._advance(growth.finished, str(self))

    def __str__(self) -> str:
        rate = self._sum.tokens / max(time.monotonic() - self._start, 1e-9)
        now = f"{rate:,.0f} tokens/s, {sum(self._running.values())} running"
        if not self._sum.finished:
            return now
        mean, cut = self._sum.length / self._sum.finished, self._sum.cut / self._sum.finished
        return f"{now}, mean length {mean:.0f}, {cut:.1%} cut off"
