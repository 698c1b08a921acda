"""Ctrl-C, as a person presses it: once, and again."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest
from aiohttp import web

pytestmark = pytest.mark.slow


def press_when(process, condition, deadline_s=120):
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)


def start(*words):
    # A shell's `&` and nohup have SIGINT ignored for all that they start, and a child of theirs inherits it.
    return subprocess.Popen(
        [sys.executable, "-m", "omniopd", *map(str, words)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def test_a_second_one_ends_an_audit_whose_teacher_is_silent_with_one_line(make_run, teacher, generated):
    async def silent(request):
        while request.transport is not None and not request.transport.is_closing():
            await asyncio.sleep(0.05)
        return web.Response()

    run = make_run(questions=8, teacher={"base_url": teacher.base_url})
    generated(run)
    teacher.behave = lambda body, number: silent
    process = start("audit", run.path, "--no-check")
    press_when(process, lambda: teacher.requests > 0)
    assert any("Ctrl-C" in line for line in iter(process.stderr.readline, ""))
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "omniopd: Interrupted. Run the same command again to resume.\n"


@pytest.mark.parametrize("times", [1, 2])
def test_generate_ends_with_one_line(make_run, teacher, times):
    run = make_run(questions=4000, generate={"max_new_tokens": 60, "batch_size": 8, "part_rows": 8})
    process = start("generate", run.path, "--no-check")
    press_when(process, lambda: run.round(0).trajectories.manifest.rows > 0)
    if times == 2:
        time.sleep(0.02)
        process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "omniopd: Interrupted. Run the same command again to resume.\n"
