# pyright: strict
"""How fast to ask: a window of requests in flight that finds its own size, and rates a minute.

Chiu and Jain, Analysis of the increase and decrease algorithms for congestion avoidance, 1989.
"""

import asyncio
import math
import time
from collections import deque

_FIRST_WINDOW = 8


class AimdWindow:
    """How many requests may be in flight: doubles with every turn at first, is halved when the server says that it is
    too much, and from then on grows by one a turn."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = float(min(most, _FIRST_WINDOW))
        self._slow_start = True
        self._cut_at = -math.inf

    @property
    def size(self) -> int:
        return int(self._size)

    def answered(self, in_flight: int) -> None:
        """An answer came while so many requests (itself included) were in flight. A window that was not full has not
        been tried, so it does not grow."""
        if in_flight >= self.size:
            self._size = min(self._most, self._size + (1 if self._slow_start else 1 / self._size))

    def throttled(self, sent: float, now: float) -> None:
        """The server said 429 or 529 to a request of the time `sent`, or nothing in time. All that were sent before the
        last cut tell the same story, and count once."""
        if sent >= self._cut_at:
            self._size = max(1.0, self._size / 2)
            self._slow_start = False
            self._cut_at = now


class RateLimiter:
    """At most so much a minute, evenly spread."""

    def __init__(self, per_minute: float | None) -> None:
        self._seconds_each = 0.0 if per_minute is None else 60 / per_minute
        self._next = -math.inf

    def wait_s(self, amount: float, now: float) -> float:
        """Take an amount; returns how long to wait before using it."""
        start = max(self._next, now)
        self._next = start + amount * self._seconds_each
        return start - now

    def give_back(self, amount: float) -> None:
        """A part of what was taken was not used."""
        self._next -= amount * self._seconds_each


class Gate:
    """Lets a request through when the window, the rates and the server allow it, in order of arrival."""

    def __init__(self, most: int, rpm: float | None, tpm: float | None) -> None:
        self.window = AimdWindow(most)
        self._requests = RateLimiter(rpm)
        self._tokens = RateLimiter(tpm)
        self._in_flight = 0
        self._paused_until = -math.inf
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def enter(self, tokens: int) -> None:
        """Wait for a place. `tokens`: the worst case; `leave` gives the rest back."""
        while self._in_flight >= self.window.size:
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            await place
        self._in_flight += 1
        now = time.monotonic()
        wait_s = max(self._requests.wait_s(1, now), self._tokens.wait_s(tokens, now))
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        while (pause_s := self._paused_until - time.monotonic()) > 0:
            await asyncio.sleep(pause_s)

    def leave(self, unused_tokens: int) -> None:
        """The request is over, however it ended."""
        self._in_flight -= 1
        self._tokens.give_back(unused_tokens)
        self.wake()

    def answered(self) -> None:
        self.window.answered(self._in_flight)

    def throttled(self, sent: float, pause_s: float | None) -> None:
        """The server asked for less, and perhaps for a pause: it holds for everyone."""
        now = time.monotonic()
        self.window.throttled(sent, now)
        self._paused_until = max(self._paused_until, now + (pause_s or 0.0))

    def wake(self) -> None:
        free = self.window.size - self._in_flight
        while free > 0 and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1
