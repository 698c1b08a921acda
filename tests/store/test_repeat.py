"""Calls in the background, for as long as a block lasts."""

import contextlib
import threading

from omniopd.store.repeat import repeated


def test_it_is_called_again_and_again_and_no_more_once_the_block_has_failed():
    calls, third = [], threading.Event()

    def call():
        calls.append(threading.current_thread())
        if len(calls) == 3:
            third.set()

    with contextlib.suppress(ValueError), repeated(call, 0.001, "calls"):
        assert third.wait(10)
        raise ValueError
    assert {thread.name for thread in calls} == {"calls"}
    assert not calls[0].is_alive()


def test_a_block_that_is_over_sooner_is_not_kept_waiting():
    with repeated(lambda: calls.append(1), 1000, "calls"):
        calls = []
    assert not calls


def test_the_end_waits_for_a_call_that_is_under_way():
    begun, done = threading.Event(), []

    def call():
        begun.set()
        done.append(threading.Event().wait(0.2))

    with repeated(call, 0.001, "calls"):
        assert begun.wait(10)
        before = len(done)
    assert len(done) > before
