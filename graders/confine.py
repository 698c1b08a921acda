# pyright: strict
"""What runs inside the sandbox: gives up every right that grading does not need, and then runs a program.

Started as a script by sandbox.py, in a bare interpreter, so it imports the standard library alone. All of it acts on
this process only and cannot be taken back, as root or as a user. docs/decisions/0015 says against whom.

1. Resource limits: address space, CPU time, no core, no file larger than nothing, few descriptors.
2. `no_new_privs`, and no capability is left: root keeps its files' ownership and nothing else.
3. Landlock: files can be read below a few folders (Python's own, shared libraries); nothing can be written.
4. seccomp: only the system calls that a computing Python makes. There is no new process, no socket, no signal to
   others, no open for writing, no file without a path; threads are allowed, since contest programs use them.
"""

import builtins
import ctypes
import json
import os
import platform
import resource
import struct
import sys
import types
from collections.abc import Sequence
from typing import Any

CONFINED = b"\0"
"""The first byte on standard error, when all rights are given up. Where it is missing, the program has not run."""

# -- seccomp

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""AUDIT_ARCH of each machine, and its column in the tables below (None: the machine has no such call)."""

# linux/include: asm/unistd_64.h and asm-generic/unistd.h
_ALLOWED: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66), "pread64": (17, 67), "lseek": (8, 62),
    "close": (3, 57), "fstat": (5, 80), "stat": (4, None), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "getdents64": (217, 61), "getcwd": (79, 17), "readlink": (89, None), "readlinkat": (267, 78), "mmap": (9, 222),
    "munmap": (11, 215), "mremap": (25, 216), "mprotect": (10, 226), "brk": (12, 214), "madvise": (28, 233),
    "futex": (202, 98), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "getrandom": (318, 278),
    "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "nanosleep": (35, 101),
    "gettimeofday": (96, 169), "time": (201, None), "times": (100, 153), "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123), "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160),
    "exit": (60, 93), "exit_group": (231, 94), "set_robust_list": (273, 99), "rseq": (334, 293),
    "set_tid_address": (218, 96), "restart_syscall": (219, 128), "getrlimit": (97, 163), "dup": (32, 23),
    "dup2": (33, None), "dup3": (292, 24), "poll": (7, None), "ppoll": (271, 73), "select": (23, None),
    "pselect6": (270, 72), "membarrier": (324, 283), "alarm": (37, None), "setitimer": (38, 103),
    "getitimer": (36, 102),
}  # fmt: skip
_OPEN, _OPENAT, _CLONE, _CLONE3 = (2, None), (257, 56), (56, 220), (435, 435)
_PRLIMIT64, _SETRLIMIT, _FCNTL, _IOCTL = (302, 261), (160, 164), (72, 25), (16, 29)

_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_EPERM, _EACCES, _ENOTTY, _ENOSYS = 1, 13, 25, 38
_PRETEND = _ERRNO
"""Say that it worked, and do nothing."""

_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NR_OFFSET, _ARCH_OFFSET = 0, 4
_X32 = 0x40000000
"""Numbers from here on mean the same calls in another ABI."""

_THREAD_FLAGS = (0x3D0F00, 0x7D0F00)
"""What glibc and musl pass to clone for a thread. A new process or namespace has other flags."""
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0o20000000  # the last is __O_TMPFILE
_FCNTL_COMMANDS = (0, 1, 2, 3, 4, 1030)  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant."""


def bpf_program(machine: str) -> list[Instruction]:
    """The filter, as classic BPF over struct seccomp_data. Pure.

    Raises:
        KeyError: no numbers are known for this machine.
    """
    arch, column = _ARCHITECTURES[machine]
    program: list[Instruction] = [
        (_LD, 0, 0, _ARCH_OFFSET),
        (_JEQ, 1, 0, arch),
        (_RET, 0, 0, _KILL),
        (_LD, 0, 0, _NR_OFFSET),
    ]
    if machine == "x86_64":
        program += [(_JGE, 0, 1, _X32), (_RET, 0, 0, _KILL)]
    for numbers in _ALLOWED.values():
        program += _when(numbers[column], [(_RET, 0, 0, _ALLOW)])
    for numbers, argument in ((_OPEN, 1), (_OPENAT, 2)):
        program += _when(
            numbers[column],
            [_low(argument), (_JSET, 0, 1, _WRITE_FLAGS), (_RET, 0, 0, _ERRNO | _EACCES), (_RET, 0, 0, _ALLOW)],
        )
    program += _when(_CLONE[column], _one_of(0, _THREAD_FLAGS))
    # Its flags are in memory, out of the filter's sight; the C library then takes clone.
    program += _when(_CLONE3[column], [(_RET, 0, 0, _ERRNO | _ENOSYS)])
    program += _when(_FCNTL[column], _one_of(1, _FCNTL_COMMANDS))
    program += _when(_IOCTL[column], [(_RET, 0, 0, _ERRNO | _ENOTTY)])
    # Contest programs ask for a larger stack; limits can be read and stay as they are.
    program += _when(
        _PRLIMIT64[column],
        [
            _low(2), (_JEQ, 0, 3, 0), (_LD, 0, 0, _argument(2) + 4), (_JEQ, 0, 1, 0),
            (_RET, 0, 0, _ALLOW), (_RET, 0, 0, _PRETEND),
        ],
    )  # fmt: skip
    program += _when(_SETRLIMIT[column], [(_RET, 0, 0, _PRETEND)])
    return [*program, (_RET, 0, 0, _ERRNO | _EPERM)]


def _argument(index: int) -> int:
    return 16 + 8 * index


def _low(index: int) -> Instruction:
    """Load the lower half of an argument (both machines are little-endian)."""
    return (_LD, 0, 0, _argument(index))


def _when(number: int | None, then: Sequence[Instruction]) -> list[Instruction]:
    """Instructions that decide about one call."""
    return [] if number is None else [(_JEQ, 0, len(then), number), *then]


def _one_of(argument: int, values: Sequence[int]) -> list[Instruction]:
    tests = [(_JEQ, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_low(argument), *tests, (_RET, 0, 0, _ERRNO | _EPERM), (_RET, 0, 0, _ALLOW)]


# -- Landlock (linux/landlock.h)

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3


def handled_accesses(abi: int) -> tuple[int, int, int]:
    """All that a version of Landlock can forbid: on files, on TCP ports, and towards processes outside. Pure."""
    files = (1 << 13) - 1  # execute, read, write, remove, make
    for bit, since in ((13, 2), (14, 3), (15, 5)):  # move between folders, truncate, ioctl on devices
        files |= (1 << bit) if abi >= since else 0
    return files, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0


# -- giving up

_SET_PDEATHSIG, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 22, 38
_SIGKILL = 9
_CAPABILITY_VERSION_3 = 0x20080522
_STACK = 128 << 20
_DESCRIPTORS = 32


def confine(readable: Sequence[str], memory_bytes: int, cpu_s: int) -> None:
    """Give up all rights but to compute, to read below `readable`, and to use the descriptors that are open.

    Raises:
        OSError: this kernel cannot take one of them away.
        KeyError: the system calls of this machine are not known.
    """
    program = bpf_program(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)
    _call(libc.prctl(_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    _call(libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    header = struct.pack("Ii", _CAPABILITY_VERSION_3, 0)
    _call(libc.capset(header, bytes(24)), "capset")
    _landlock(libc, readable)
    for limit, soft, hard in (
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s, cpu_s + 1),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, _DESCRIPTORS, _DESCRIPTORS),
        (resource.RLIMIT_STACK, _STACK, _STACK),
    ):
        ceiling = resource.getrlimit(limit)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(limit, (soft, hard))
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    filter_ = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(buffer))
    _call(libc.prctl(_SET_SECCOMP, 2, filter_, 0, 0), "seccomp (CONFIG_SECCOMP_FILTER)")


def _landlock(libc: Any, readable: Sequence[str]) -> None:
    abi = libc.syscall(_CREATE_RULESET, None, 0, 1)
    _call(abi, "Landlock (Linux 5.13 or newer, and not switched off)")
    attributes = struct.pack("QQQ", *handled_accesses(abi))
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    ruleset = libc.syscall(_CREATE_RULESET, attributes, size, 0)
    _call(ruleset, "landlock_create_ruleset")
    for path in readable:
        if not os.path.exists(path):  # noqa: PTH110 (pathlib costs a tenth of the start)
            continue
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        allowed = _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0)  # noqa: PTH112
        rule = struct.pack("=Qi", allowed, handle)
        _call(libc.syscall(_ADD_RULE, ruleset, 1, rule, 0), f"landlock_add_rule for {path}")
        os.close(handle)
    _call(libc.syscall(_RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _call(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def main() -> None:
    """Read what to run from the descriptor that is named on the command line, lose all rights, and run it."""
    with os.fdopen(int(sys.argv[1]), encoding="utf-8") as file:
        task = json.load(file)
    parent = os.getppid()
    try:
        confine(task["readable"], task["memory_bytes"], task["cpu_s"])
    except (OSError, KeyError, AttributeError) as error:
        sys.exit(str(error.args[-1] if error.args else error))
    if os.getppid() != parent:
        sys.exit("the parent died before its death would have been noticed")
    os.write(2, CONFINED)
    sys.path[:] = task["path"]
    sys.argv = ["solution.py"]
    # The module site, which is left out, would define these.
    builtins.__dict__["exit"] = builtins.__dict__["quit"] = sys.exit
    # The program's own __main__: it sees none of the names above.
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    exec(compile(task["program"], "solution.py", "exec"), module.__dict__)


if __name__ == "__main__":
    main()
