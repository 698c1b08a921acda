"""Progress where there is no terminal, and what generate and eval say of responses that grow."""

import contextlib
import threading

import numpy as np
import pytest

from omniopd.stages.generate.engine import Request, Response, Sampling
from omniopd.stages.generate.shown import Shown, sampled
from omniopd.stages.progress import progress


class Lines:
    """A stream without a terminal; `wait` waits for so many lines."""

    def __init__(self):
        self.lines, self._more = [], threading.Condition()

    def isatty(self):
        return False

    def write(self, line):
        with self._more:
            self.lines.append(line)
            self._more.notify_all()

    def wait(self, count):
        with self._more:
            assert self._more.wait_for(lambda: len(self.lines) >= count, timeout=30)


@pytest.fixture
def stderr(monkeypatch):
    monkeypatch.setattr("omniopd.stages.progress._SECONDS_BETWEEN_LINES", 0.01)
    return Lines()


def test_a_log_gets_lines_while_nothing_is_done_yet(stderr):
    with contextlib.redirect_stderr(stderr), progress("audit", 12):
        stderr.wait(3)
    assert stderr.lines[0] == "audit: 0/12\n"


def test_a_line_says_how_far_it_is_and_what_is_left(stderr):
    with contextlib.redirect_stderr(stderr), progress("audit", 12, done=2) as advance:
        advance(4, "$0.10 spent")
        stderr.wait(len(stderr.lines) + 2)
    assert stderr.lines[-1].startswith("audit: 6/12, ")
    assert stderr.lines[-1].endswith(" s left  $0.10 spent\n")


def test_there_are_no_lines_after_the_end(stderr):
    with contextlib.redirect_stderr(stderr), progress("audit", None) as advance:
        advance(3, "")
        stderr.wait(1)
    threads = [thread for thread in threading.enumerate() if thread.daemon and "speak" in str(thread)]
    assert threads == []
    assert stderr.lines[-1] in ("audit: 3\n", "audit: 0\n")


def test_the_note_has_tokens_before_the_first_response_is_done():
    class TwoSteps:
        def generate(self, requests, sampling, pulse):
            pulse(2, 2)
            pulse(1, 2)
            ids = np.array([7, 2], np.int32)
            yield Response(requests[0].trajectory_id, ids, ids * 0.0, ids * 0.0, "length")

    notes = []
    responses = list(
        sampled(
            TwoSteps(), [Request("a", (5,)), Request("b", (5,))], Sampling(2, 1.0, 1.0, frozenset()),
            Shown(lambda count, note: notes.append((count, note))),
        )
    )  # fmt: skip
    assert len(responses) == 1
    assert [count for count, _ in notes] == [0, 0, 1]
    assert notes[0][1].endswith(" tokens/s, 2 running")
    assert notes[2][1].endswith(" tokens/s, 1 running, mean length 2, 100.0% cut off")
