"""Responses as an engine gives them, while a progress bar says how fast they grow."""

import time
from collections.abc import Iterator, Sequence

from ..progress import Advance
from .engine import Engine, Request, Response, Sampling


def sampled(engine: Engine, requests: Sequence[Request], sampling: Sampling, advance: Advance) -> Iterator[Response]:
    """What the engine samples, each as soon as it is done; `advance` also hears of those that still grow."""
    note = _Note()

    def pulse(running: int, tokens: int) -> None:
        advance(0, note.grown(running, tokens))

    for response in engine.generate(requests, sampling, pulse):
        advance(1, note.finished(response))
        yield response


class _Note:
    """The state of the sampling in a few words."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._running = self._tokens = 0
        self._responses = self._length = self._cut = 0

    def grown(self, running: int, tokens: int) -> str:
        self._running = running
        self._tokens += tokens
        return str(self)

    def finished(self, response: Response) -> str:
        self._responses += 1
        self._length += len(response.ids_T)
        self._cut += response.finish_reason == "length"
        return str(self)

    def __str__(self) -> str:
        rate = self._tokens / max(time.monotonic() - self._start, 1e-9)
        now = f"{rate:,.0f} tokens/s, {self._running} running"
        if not self._responses:
            return now
        mean, cut = self._length / self._responses, self._cut / self._responses
        return f"{now}, mean length {mean:.0f}, {cut:.1%} cut off"
