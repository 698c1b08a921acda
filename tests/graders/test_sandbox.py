"""The walls of the sandbox, tried from inside. Every program here is bounded, so that a hole costs little."""

import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

import omniopd
from omniopd.graders import sandbox
from omniopd.graders.confine import bpf_program, handled_accesses
from omniopd.graders.sandbox import Limits, check, run
from omniopd.store.errors import InputError

LIMITS = Limits(cpu_s=1, wall_s=4, memory_mb=512, output_bytes=1 << 16, threads=16)


def test_a_harmless_program_computes_reads_its_input_and_imports_what_contest_programs_import():
    program = (
        "import heapq, collections, bisect, math, re, itertools, functools, decimal, fractions, random, datetime, sys\n"
        "sys.setrecursionlimit(10**6)\nprint(sum(map(int, open(0).read().split())), math.gcd(12, 18))\n"
    )
    outcome = run(program, "1 2\n3\n", LIMITS)
    assert (outcome.status, outcome.stdout) == ("ok", "6 6\n")


def test_its_own_input_can_be_opened_by_name_and_exit_and_quit_are_there_as_in_any_python():
    for program in ("print(open('/dev/stdin').read(), end='')\nexit()", "print(input())\nquit(0)"):
        assert run(program, "1 2\n", LIMITS) == sandbox.Outcome("ok", "1 2\n", "")
    outcome = run("import os\nopen(os.path.realpath('/dev/stdin'), 'a')", "1 2\n", LIMITS)
    assert outcome.status == "error"
    assert "PermissionError" in outcome.message


def test_a_thread_with_a_large_stack_works_and_a_larger_limit_is_only_pretended():
    program = (
        "import resource, sys, threading\nresource.setrlimit(resource.RLIMIT_STACK, (-1, -1))\n"
        "threading.stack_size(1 << 26)\nt = threading.Thread(target=lambda: print('deep'))\nt.start()\nt.join()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\nx = bytearray(600 << 20)\n"
    )
    outcome = run(program, "", LIMITS)
    assert (outcome.status, outcome.stdout) == ("memory", "deep\n")


def test_fork_bombs_never_fork(tmp_path):
    """First one fork, then as many as it likes for a second, each by another way."""
    for fork in ("import os\nos.fork()", "import subprocess, sys\nsubprocess.run([sys.executable, '-c', '1'])",
                 "import multiprocessing as m\np = m.Process(target=print)\np.start()",
                 "import os\nos.posix_spawn('/bin/true', ['true'], {})",
                 "import os\nos.execv('/bin/true', ['true'])"):  # fmt: skip
        outcome = run(fork, "", LIMITS)
        assert outcome.status == "error", fork
        assert "PermissionError" in outcome.message, fork
    bomb = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n"
    start = time.monotonic()
    assert run(bomb, "", LIMITS).status == "timeout"
    assert time.monotonic() - start < LIMITS.wall_s + 5


def test_a_thread_bomb_is_ended():
    bomb = "import threading, time\nfor _ in range(200):\n    threading.Thread(target=time.sleep, args=(3,)).start()\n"
    assert run(bomb, "", LIMITS).status in ("threads", "timeout")
    small_stacks = "import threading\nthreading.stack_size(1 << 16)\n" + bomb
    assert run(small_stacks, "", LIMITS).status == "threads"


def test_an_endless_loop_ends_by_processor_time_and_a_sleeper_by_wall_time():
    start = time.monotonic()
    assert run("while True: pass", "", LIMITS).status == "timeout"
    assert run("import time\ntime.sleep(1000)", "", Limits(wall_s=1)).status == "timeout"
    assert time.monotonic() - start < 12
    closed = "import os, time\nos.close(1)\nos.close(2)\ntime.sleep(1000)"
    assert run(closed, "", Limits(wall_s=1)).status == "timeout"


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(10 << 30)",
        "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
        "import mmap\nx = [mmap.mmap(-1, 1 << 30) for _ in range(10)]",
        "import os\nos.write(os.memfd_create('x'), b'x')",
    ],
)
def test_ten_gigabytes_are_not_given(program):
    outcome = run(program, "", Limits(cpu_s=30, wall_s=60))
    assert outcome.status in ("memory", "error")
    assert any(word in outcome.message for word in ("MemoryError", "Cannot allocate", "PermissionError"))


def test_nothing_can_be_written_removed_or_renamed_and_nothing_private_read(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    attempts = [
        f"open({str(tmp_path / 'new')!r}, 'w')", f"open({str(victim)!r}, 'w')", f"open({str(victim)!r}, 'r+')",
        f"import os; os.open({str(victim)!r}, os.O_RDONLY | os.O_TRUNC)", f"import os; os.unlink({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, {str(victim) + '2'!r})", f"import os; os.truncate({str(victim)!r}, 0)",
        f"import os; os.chmod({str(victim)!r}, 0o777)", f"import os; os.mkdir({str(tmp_path / 'd')!r})",
        f"import os; os.symlink('/etc', {str(tmp_path / 's')!r})", f"open({str(victim)!r})",
        "import tempfile; tempfile.TemporaryFile()", "open('/etc/passwd')", "open('/proc/self/environ')",
        f"open('/proc/{os.getpid()}/mem', 'rb')", "import os; os.listdir('/')", "import os; os.write(0, b'x')",
    ]  # fmt: skip
    for attempt in attempts:
        outcome = run(attempt, "input", LIMITS)
        assert outcome.status == "error", attempt
        assert any(e in outcome.message for e in ("PermissionError", "FileNotFoundError", "OSError")), outcome.message
    assert victim.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["victim"]


def test_no_socket_reaches_a_listener():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        port = server.getsockname()[1]
        outcome = run(f"import socket\nsocket.create_connection(('127.0.0.1', {port}))", "", LIMITS)
        assert outcome.status == "error"
        assert "PermissionError" in outcome.message
        with pytest.raises(TimeoutError):
            server.accept()
    for family in ("AF_UNIX", "AF_INET6", "AF_NETLINK"):
        assert "PermissionError" in run(f"import socket\nsocket.socket(socket.{family})", "", LIMITS).message
    assert "PermissionError" in run("import socket\nsocket.socketpair()", "", LIMITS).message


def test_the_parent_cannot_be_signalled_or_traced_and_its_secrets_are_not_inherited(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "secret" not in run("import os\nprint(dict(os.environ))", "", LIMITS).stdout
    for call in ("os.kill(os.getppid(), 0)", "os.kill(1, 0)", "os.setuid(0)", "os.nice(-1)", "os.mkfifo('/tmp/x')"):
        assert "PermissionError" in run(f"import os\n{call}", "", LIMITS).message, call
    trace = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.ptrace(16, {}, 0, 0))"
    assert run(trace.format(os.getpid()), "", LIMITS).stdout == "-1\n"
    held = "import os\nfor fd in range(3, 32):\n    try: print(os.fstat(fd))\n    except OSError: pass"
    with Path(__file__).open() as kept:
        os.set_inheritable(kept.fileno(), True)
        assert run(held, "", LIMITS).stdout == ""


def test_output_is_cut_off_and_errors_do_not_fill_memory():
    assert run("while True: print('x' * 1000)", "", LIMITS).status == "output"
    noisy = run("import sys\nfor _ in range(3000): sys.stderr.write('x' * 999 + '\\n')\nprint('done')", "", LIMITS)
    assert (noisy.status, noisy.stdout) == ("ok", "done\n")


def test_however_a_program_ends_it_is_told_apart_from_a_sandbox_that_failed():
    assert run("raise SystemExit(97)", "", LIMITS).status == "error"
    assert run("import os\nos.abort()", "", LIMITS).status == "error"
    assert run("import os\nos.close(2)\nos._exit(0)", "", LIMITS).status == "ok"
    assert run("import ctypes\nctypes.string_at(0)", "", LIMITS).status == "error"
    assert "SyntaxError" in run("def", "", LIMITS).message
    assert "NameError" in run("confine()", "", LIMITS).message, "the program does not see the sandbox's own names"


def test_what_it_says_of_this_machine_is_that_it_holds():
    check(LIMITS)


def test_without_one_of_the_mechanisms_nothing_runs_and_one_line_says_why(monkeypatch, tmp_path):
    """A child whose kernel has no Landlock, no seccomp, or system calls nobody knows."""
    source = Path(sandbox.__file__).with_name("confine.py").read_text()
    landlock, seccomp = "_ADD_RULE, _RESTRICT_SELF = ", "_SET_SECCOMP, _SET_NO_NEW_PRIVS = "
    broken = {
        "Landlock": (f"{landlock}444", f"{landlock}999"),
        "seccomp": (f"{seccomp}1, 22", f"{seccomp}1, 99"),
        "m68k": ("bpf_program(platform.machine())", "bpf_program('m68k')"),
    }
    mark = tmp_path / "ran"
    for name, (before, after) in broken.items():
        assert before in source
        child = tmp_path / "child.py"
        child.write_text(source.replace(before, after))
        monkeypatch.setattr(sandbox, "_CHILD", child)
        with pytest.raises(InputError, match=f"the sandbox does not hold: .*{name}"):
            run(f"open({str(mark)!r}, 'w')", "", LIMITS)
        assert not mark.exists()


def test_a_wall_that_lets_something_through_is_noticed(monkeypatch, tmp_path):
    source = Path(sandbox.__file__).with_name("confine.py").read_text()
    child = tmp_path / "child.py"
    child.write_text(source.replace('"exit": (60, 93)', '"socket": (41, 198), "exit": (60, 93)'))
    monkeypatch.setattr(sandbox, "_CHILD", child)
    with pytest.raises(InputError, match="a program could open a socket"):
        check(LIMITS)


def test_a_program_dies_with_the_process_that_grades(tmp_path):
    """kill -9 of the parent: the program, which would run for a minute, is gone at once."""
    script = (
        "from omniopd.graders.sandbox import Limits, run\n"
        "run('print(1, flush=True)\\nimport time\\ntime.sleep(60)', '', Limits())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script])
    child = None
    deadline = time.monotonic() + 20
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    while child is None and time.monotonic() < deadline:
        child = next(iter(children.read_text().split()), None)
        time.sleep(0.01)
    time.sleep(0.3)
    parent.kill()
    parent.wait(10)
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{child}").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="the suite runs as a user already")
def test_an_ordinary_user_is_held_as_well():
    """The same check as uid 65534, by a Python that this user can reach."""
    python = "/usr/bin/python3"
    if not Path(python).exists() or b"3.1" not in (version := subprocess.check_output([python, "--version"])):
        pytest.skip("no system Python that another user can run")
    if int(version.split(b".")[1]) < 11:
        pytest.skip(f"{version.decode()} is too old")
    package = Path(omniopd.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        # The package itself knows its objectives.
        objectives = [f"method/objectives/{path.name}" for path in (package / "method" / "objectives").glob("*.py")]
        names = ["__init__.py", "store/__init__.py", "store/errors.py", "store/objectives.py", "method/__init__.py"]
        graders = ("graders/__init__.py", "graders/confine.py", "graders/sandbox.py")
        for name in (*names, *objectives, *graders):
            copy = Path(folder) / "omniopd" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text((package / name).read_text())
        script = (
            "import os\nfrom omniopd.graders.sandbox import Limits, check, run\nassert os.getuid() == 65534\n"
            "check(Limits(cpu_s=1))\nprint(run('x = bytearray(10 << 30)', '', Limits()).status)\n"
        )
        done = subprocess.run(
            [python, "-B", "-c", script], cwd=folder, user=65534, group=65534, env={}, capture_output=True, text=True
        )
    assert done.stdout == "memory\n", done.stderr


def simulate(program, machine, number, arguments=(0,) * 6):
    """Interpret the filter as the kernel does."""
    import struct

    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    data = struct.pack("IIQ6Q", number, arch, 0, *arguments)
    at, value = 0, 0
    while True:
        code, yes, no, constant = program[at]
        at += 1
        match code:
            case 0x20:
                value = struct.unpack_from("I", data, constant)[0]
            case 0x15:
                at += yes if value == constant else no
            case 0x35:
                at += yes if value >= constant else no
            case 0x45:
                at += yes if value & constant else no
            case 0x06:
                return constant
            case _:
                raise AssertionError(code)


ALLOW, ERRNO = 0x7FFF0000, 0x00050000
THREAD, FORK = 0x3D0F00, 0x1200011


@pytest.mark.parametrize(
    ("machine", "read", "socket_", "openat", "clone", "clone3", "prlimit", "fcntl"),
    [("x86_64", 0, 41, 257, 56, 435, 302, 72), ("aarch64", 63, 198, 56, 220, 435, 261, 25)],
)
def test_the_filter_decides_as_written(machine, read, socket_, openat, clone, clone3, prlimit, fcntl):
    program = bpf_program(machine)

    def decide(number, *arguments):
        return simulate(program, machine, number, (*arguments, *(0,) * (6 - len(arguments))))

    assert decide(read) == ALLOW
    assert decide(socket_) == ERRNO | 1
    assert decide(openat, 0, 0, os.O_RDONLY | 0o2000000) == ALLOW
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, 0o20200000):
        assert decide(openat, 0, 0, flags) == ERRNO | 13
    assert decide(clone, THREAD) == ALLOW
    for flags in (FORK, THREAD | 0x10000000, 0x4111):  # fork, CLONE_NEWUSER, vfork
        assert decide(clone, flags) == ERRNO | 1
    assert decide(clone3) == ERRNO | 38
    assert decide(prlimit, 0, 9, 0, 1 << 40) == ALLOW
    assert decide(prlimit, 0, 9, 1 << 40, 0) == ERRNO, "the upper half of a pointer counts too"
    assert decide(fcntl, 1, 3) == ALLOW
    assert decide(fcntl, 1, 1031) == ERRNO | 1
    if machine == "x86_64":
        assert decide(read + 0x40000000) == 0x80000000
    assert len(program) < 4096


def test_another_architecture_is_killed_by_the_filter():
    other = {"x86_64": "aarch64", "aarch64": "x86_64"}[platform.machine()]
    assert simulate(bpf_program(platform.machine()), other, 0) == 0x80000000


def test_each_version_of_landlock_is_asked_for_what_it_has():
    assert handled_accesses(1) == (0x1FFF, 0, 0)
    assert handled_accesses(3) == (0x7FFF, 0, 0)
    assert handled_accesses(7) == (0xFFFF, 0b11, 0b11)


def test_programs_run_side_by_side():
    """Grading asks from several threads."""
    outcomes = {}

    def one(i):
        outcomes[i] = run(f"print({i})", "", LIMITS).stdout

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == {i: f"{i}\n" for i in range(8)}
