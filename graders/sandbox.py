# pyright: strict
"""Run a program that nobody has read: in a process that can compute and nothing else. docs/decisions/0015.

The process is started for one program and one input. confine.py gives up its rights from inside; from here it is
watched for what the kernel does not limit: wall time, output and threads. It cannot start another process, so killing
it ends everything.
"""

import json
import os
import selectors
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..store.errors import InputError
from .confine import CONFINED

_CHILD = Path(__file__).with_name("confine.py")
_WATCH_S = 0.05
_ERROR_BYTES = 1 << 16

_READABLE = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/usr/share/zoneinfo"),
    *("/etc/ld.so.cache", "/etc/localtime", "/dev/null", "/dev/zero", "/dev/urandom"),
)
"""Beside Python's own library. /usr/local/lib holds what a system's Python has installed."""


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    cpu_s: int = 10
    """Processor time of all threads."""
    wall_s: float = 30.0
    memory_mb: int = 1024
    """Address space, MiB."""
    output_bytes: int = 1 << 20
    """Standard output."""
    threads: int = 64


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: str
    """ok (exit code 0) | timeout | memory | output | threads | error"""
    stdout: str
    message: str
    """Last line of standard error, or the signal that ended it."""


def run(program: str, stdin: str, limits: Limits) -> Outcome:
    """Run Python source with an input. Whatever it does, this returns within the wall time.

    Raises:
        InputError: this machine cannot confine it. Nothing has run then.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as task, tempfile.NamedTemporaryFile("wb") as data:
        json.dump(
            {
                "program": program,
                # Its own input can also be opened by name: /dev/stdin.
                "readable": [*_READABLE, str(sysconfig.get_config_var("LIBDIR")), *_python_folders(), data.name],
                "path": _python_folders(),
                "memory_bytes": limits.memory_mb << 20,
                "cpu_s": limits.cpu_s,
            },
            task,
        )
        task.flush()
        task.seek(0)
        data.write(stdin.encode("utf-8", "surrogatepass"))
        data.flush()
        with open(data.name, "rb") as input_, _start(task, input_) as process:  # noqa: PTH123 (a bare descriptor)
            try:
                return _watch(process, limits)
            finally:
                process.kill()


def check(limits: Limits) -> None:
    """See with a few programs that the walls stand: before anything is graded.

    Raises:
        InputError: one of them does not.
    """
    if sys.platform != "linux" or not Path("/proc/self/status").exists():
        raise _unsafe("it is not Linux with /proc")
    hello = run("print('hello')", "", limits)
    if (hello.status, hello.stdout) != ("ok", "hello\n"):
        raise _unsafe(f"a harmless program fails in it ({hello.message or hello.status})")
    with tempfile.TemporaryDirectory() as folder:
        secret, target = Path(folder) / "secret", Path(folder) / "target"
        secret.write_text("secret")
        escapes = {
            "write a file": f"open({str(target)!r}, 'w')",
            "read a file": f"open({str(secret)!r})",
            "start a process": "import os; os.fork() or os._exit(1)",
            "open a socket": "import socket; socket.socket()",
            "send a signal": "import os; os.kill(os.getppid(), 0)",
        }
        for what, program in escapes.items():
            # A program that is stopped dies of PermissionError.
            if "PermissionError" not in (outcome := run(program, "", limits)).message:
                raise _unsafe(f"a program could {what} ({outcome.status} {outcome.message})")


def _unsafe(reason: str) -> InputError:
    return InputError(
        f"Code cannot be graded here, because the sandbox does not hold: {reason}.",
        "Grade on a Linux machine (x86_64 or aarch64) with Landlock and seccomp; docs/evaluation.md says more.",
    )


def _python_folders() -> list[str]:
    """Standard library, its compiled modules, and what is installed beside it (numpy, if it is)."""
    paths = sysconfig.get_paths()
    compiled = str(sysconfig.get_config_var("DESTSHARED"))
    return list(dict.fromkeys([paths["stdlib"], compiled, paths["purelib"], paths["platlib"]]))


def _start(task: IO[str], stdin: IO[bytes]) -> "subprocess.Popen[bytes]":
    # -I: no environment, no user's packages; -S: no .pth files, which could import anything.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_CHILD), str(task.fileno())],
        stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[task.fileno()], cwd="/",
        env={"LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1",
             "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip


def _watch(process: "subprocess.Popen[bytes]", limits: Limits) -> Outcome:
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = bytearray(), bytearray()
    confined = False
    deadline = time.monotonic() + limits.wall_s
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, out)
        selector.register(process.stderr, selectors.EVENT_READ, err)
        while selector.get_map():
            for key, _ in selector.select(_WATCH_S):
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fileobj)
                # Errors are read to the end, and the end of them is kept.
                key.data.extend(chunk)
                confined = confined or err.startswith(CONFINED)
                del err[:-_ERROR_BYTES]
            if len(out) > limits.output_bytes:
                return _killed(process, "output", out, f"more than {limits.output_bytes} bytes of output")
            if time.monotonic() > deadline:
                return _killed(process, "timeout", out, f"more than {limits.wall_s:g} s")
            if (threads := _threads(process.pid)) > limits.threads:
                return _killed(process, "threads", out, f"more than {limits.threads} threads ({threads})")
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:  # it closed its output and went on
        return _killed(process, "timeout", out, f"more than {limits.wall_s:g} s")
    message = _last_line(err.decode("utf-8", "replace"))
    if not confined:
        raise _unsafe(message or "its process ended early")
    return _ended(code, out.decode("utf-8", "replace"), message)


def _killed(process: "subprocess.Popen[bytes]", status: str, out: bytearray, message: str) -> Outcome:
    process.kill()
    return Outcome(status, out.decode("utf-8", "replace"), message)


def _threads(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0
    return int(status.partition("Threads:")[2].split(maxsplit=1)[0])


def _ended(code: int, stdout: str, message: str) -> Outcome:
    if code == 0:
        return Outcome("ok", stdout, message)
    if code in (-24, -9):  # SIGXCPU, and SIGKILL a second later
        return Outcome("timeout", stdout, "out of processor time")
    if "MemoryError" in message:
        return Outcome("memory", stdout, message)
    return Outcome("error", stdout, message or f"exit code {code}")


def _last_line(text: str) -> str:
    lines = text.strip("\0 \n").splitlines()
    return lines[-1][:500] if lines else ""
