"""The window finds its own size, the rates spread requests evenly, and the server's wishes are understood."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from aiohttp import web

from omniopd.stages.audit.client import retry_after_s
from omniopd.stages.audit.concurrency import AimdWindow, Gate, RateLimiter
from omniopd.stages.audit.stage import audit
from omniopd.store.ledger_read import read_totals


def turn(window):
    """A full window is answered, and each place that is free is taken again."""
    for _ in range(window.size):
        window.answered(window.size)


def test_the_window_doubles_until_it_is_cut_and_then_grows_by_one_a_turn():
    window = AimdWindow(1000)
    sizes = []
    for _ in range(4):
        sizes.append(window.size)
        turn(window)
    assert sizes == [8, 16, 32, 64]
    window.throttled(sent=1.0, now=2.0)
    sizes = [window.size]
    for _ in range(3):
        turn(window)
        sizes.append(round(window._size))
    assert sizes == [64, 65, 66, 67]


def test_requests_that_were_sent_under_the_old_window_cut_it_once():
    window = AimdWindow(64)
    turn(window)
    for _ in range(10):
        window.throttled(sent=1.0, now=2.0)
    assert window.size == 8
    window.throttled(sent=3.0, now=4.0)
    assert window.size == 4


def test_a_window_that_is_not_full_does_not_grow_and_none_leaves_its_bounds():
    window = AimdWindow(9)
    window.answered(3)
    assert window.size == 8
    for _ in range(5):
        turn(window)
    assert window.size == 9
    for sent in range(10):
        window.throttled(float(sent), float(sent))
    assert window.size == 1
    assert AimdWindow(3).size == 3


def test_a_rate_spreads_what_it_lets_through_and_takes_back_what_was_not_used():
    rate = RateLimiter(60)
    assert [rate.wait_s(1, 100.0) for _ in range(3)] == [0.0, 1.0, 2.0]
    rate.give_back(2)
    assert rate.wait_s(1, 100.0) == 1.0
    assert rate.wait_s(1, 200.0) == 0.0, "an idle minute is not saved up"
    assert RateLimiter(None).wait_s(1e9, 0.0) == 0.0


def test_a_pause_holds_for_everyone_and_places_are_given_in_order():
    async def main():
        gate = Gate(2, None, None)
        entered = []

        async def one(name):
            await gate.enter(10)
            entered.append(name)
            await asyncio.sleep(0)
            gate.leave(0)

        start = time.monotonic()
        gate.throttled(start, 0.05)
        await asyncio.gather(*(one(name) for name in range(6)))
        assert entered == list(range(6))
        assert time.monotonic() - start >= 0.05

    asyncio.run(main())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "9999"}, 60),
        ({"Retry-After": format_datetime(datetime.now(UTC) + timedelta(hours=1))}, 60),
        ({"retry-after-ms": "250"}, 0.25),
        ({"x-ratelimit-reset-requests": "1m3s", "x-ratelimit-reset-tokens": "20ms"}, 60),
        ({"x-ratelimit-reset-requests": "2s"}, 2),
        ({"anthropic-ratelimit-input-tokens-reset": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}, 60),
        ({"Retry-After": "soon"}, None),
        ({"x-ratelimit-reset-requests": "whenever"}, None),
        ({"x-ratelimit-reset-requests": "1.2.3s"}, None),
        ({"x-ratelimit-reset-requests": "1.5s"}, 1.5),
        ({"Retry-After": "²"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_all_ways_to_ask_for_a_pause_are_understood(headers, seconds):
    found = retry_after_s(headers)
    assert found == (None if seconds is None else pytest.approx(seconds, abs=0.01))


def test_a_server_that_is_overrun_without_a_word_is_asked_less(make_run, generated, teacher):
    """`transformers serve` queues what it cannot do at once, and answers too late."""
    inside, most = 0, 4

    def behave(body, number):
        async def answer(request):
            nonlocal inside
            inside += 1
            try:
                await asyncio.sleep(0.01 if inside <= most else 2)  # a second longer than anybody waits
            finally:
                inside -= 1
            return web.json_response(teacher.answer(body))

        return answer

    teacher.behave = behave
    settings = {"base_url": teacher.base_url, "timeout_s": 1, "max_attempts": 20, "budget_usd": None}
    run = generated(make_run(teacher=settings))
    audit(run, 0, run.config())
    totals = read_totals(run.ledger)
    answered = totals.requests - totals.unknown
    assert answered == run.round(0).chunks.manifest.rows == 36
    assert totals.unknown <= 38, "they are charged in full, and a window that never shrinks has 48"
