"""Stages that ask the teacher, called where an event loop runs: a notebook's cells are."""

import asyncio
import os
import signal

import pytest

from omniopd.stages import own_loop
from omniopd.stages.audit.stage import audit
from omniopd.store.errors import Interrupted


@pytest.fixture
def run(make_run, teacher, generated):
    made = make_run(questions=12, teacher={"base_url": teacher.base_url, "rollouts": 2, "max_concurrency": 4})
    generated(made)
    return made


def in_a_cell(call):
    """As a notebook's kernel runs a cell: inside of a loop, while Ctrl-C raises KeyboardInterrupt."""

    async def cell():
        return call()

    # Not ignored, as a shell's `&` and nohup have it for all that they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(cell())
    finally:
        loop.close()
        signal.signal(signal.SIGINT, before)


def test_an_audit_is_the_same_in_a_notebook(run):
    said = in_a_cell(lambda: audit(run, 0, run.config()))
    assert said == audit(run, 0, run.config())
    assert run.round(0).rollouts.complete


def test_ctrl_c_in_a_notebook_waits_for_the_answers_in_flight_and_buys_no_more(run, teacher):
    def behave(body, number):
        if number == 6:
            os.kill(os.getpid(), signal.SIGINT)

    teacher.behave = behave
    with pytest.raises(Interrupted):
        in_a_cell(lambda: audit(run, 0, run.config()))
    assert teacher.requests == teacher.answered < run.round(0).chunks.manifest.rows
    assert run.round(0).rollouts.manifest.rows == 2 * teacher.answered


def test_one_who_asks_before_the_loop_can_end_is_heard_when_it_can():
    ended = []
    asked = own_loop.Interruption()
    asked.ask()
    asked.calls(lambda: ended.append("at once"))
    assert ended == ["at once"]


def test_an_error_reaches_the_cell():
    async def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        in_a_cell(lambda: own_loop.run(fail()))
