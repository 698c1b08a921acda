# pyright: strict
"""math-verify in processes that can be killed: it hangs on some inputs, in ways that no signal ends.

A worker that is late or gone is replaced, and the response that it died on is graded wrong.
"""

import contextlib
import importlib.util
import json
import os
import queue
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..store.errors import InputError
from .verdict import Verdict

_WORKER = Path(__file__).with_name("math_worker.py")
_START_S = 120.0
"""Longest wait for sympy to be imported, on a busy machine."""


class MathVerify:
    """Grades by the value of the answer: 1/2, 0.5 and \\frac12 are the same."""

    name = "math_verify"

    def __init__(self, limit_s: float, workers: int) -> None:
        """
        Args:
            limit_s: Longest time for one response, s.

        Raises:
            InputError: math-verify is not installed.
        """
        if importlib.util.find_spec("math_verify") is None:
            raise InputError(
                "The grader math_verify needs the package math-verify.",
                "Install omniopd[eval], or grade with --grader dapo_regex alone.",
            )
        self._limit_s = limit_s
        self._idle: queue.SimpleQueue[_Worker | None] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)  # started when it is needed
        self._workers = workers
        # A worker dies with the thread that started it (PR_SET_PDEATHSIG), so that thread has to stay.
        self._starter = ThreadPoolExecutor(1)

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"math-verify": version("math-verify"), "limit_s": self._limit_s}

    def grade(self, response: str, reference: str) -> Verdict:
        """math-verify's verdict on a response, or `timeout`."""
        worker = self._idle.get()
        try:
            if worker is None or worker.gone:
                worker = self._starter.submit(_Worker).result()
                worker.wait_until_ready()
            verdict = worker.ask(as_gold(reference), response, self._limit_s)
        finally:
            self._idle.put(worker)
        return verdict

    def close(self) -> None:
        for _ in range(self._workers):
            worker = self._idle.get()
            if worker is not None:
                worker.kill()
        self._starter.shutdown()


def as_gold(reference: str) -> str:
    """A reference as math-verify reads it: LaTeX without delimiters would be taken for prose."""
    delimited = "\\boxed" in reference or re.search(r"(?<!\\)\$", reference) is not None
    return reference if delimited else f"\\boxed{{{reference}}}"


class _Worker:
    def __init__(self) -> None:
        # -P: the script's folder does not come before the installed packages.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", str(_WORKER)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    @property
    def gone(self) -> bool:
        """Whether the process has ended."""
        return self._process.poll() is not None

    def wait_until_ready(self) -> None:
        """Wait for its imports.

        Raises:
            InputError: they fail.
        """
        if self._line(_START_S):
            return
        assert self._process.stderr is not None
        self._process.kill()
        lines = self._process.stderr.read().decode("utf-8", "replace").strip().splitlines() or ["it did not start"]
        self.kill()
        raise InputError(f"math-verify cannot be used: {lines[-1]}.", "Install omniopd[eval] again.")

    def ask(self, gold: str, response: str, limit_s: float) -> Verdict:
        assert self._process.stdin is not None
        task = json.dumps({"reference": gold, "response": response}) + "\n"
        try:
            self._process.stdin.write(task.encode())
            self._process.stdin.flush()
            line = self._line(limit_s)
        except BrokenPipeError:
            line = b""
        if line is None:
            self.kill()
            return Verdict(False, "timeout", detail=f"math-verify took more than {limit_s:g} s")
        if not line:
            code = self.kill()
            return Verdict(False, "error", detail=f"math-verify's process ended ({code})")
        answer = json.loads(line)
        if answer["correct"]:
            return Verdict(True, "right", answer["extracted"])
        return Verdict(False, "wrong" if answer["found"] else "no_answer", answer["extracted"])

    def _line(self, limit_s: float) -> bytes | None:
        """The next line; b"" where the process ended; None where there is none in time."""
        assert self._process.stdout is not None
        handle = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        deadline = time.monotonic() + limit_s
        line = b""
        # A worker writes one line for one question, so there is never more than that in the pipe.
        while not line.endswith(b"\n"):
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                return None
            chunk = os.read(handle, 1 << 16)
            if not chunk:
                return b""
            line += chunk
        return line

    def kill(self) -> int:
        """End it. Returns the exit code that it had or has now."""
        self._process.kill()
        code = self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what could not be written to a dead process
                    pipe.close()
        return code
