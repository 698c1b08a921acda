"""`python -m omniopd ...` as a process of its own, without the seconds of imports that a new interpreter needs.

A server process loads the heavy modules once, and each command is forked from it. The processes are real: they can be
killed, and have their own environment, output and exit code.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "omniopd.cli",
        "omniopd.stages.generate.stage",
        "omniopd.stages.audit.stage",
        "omniopd.stages.score.stage",
        "omniopd.train.trainer",
        "transformers.models.qwen3.modeling_qwen3",
        "tensorboard.summary.writer.event_file_writer",
    ]
)


@dataclass(frozen=True)
class Finished:
    """How a process ended, and what it said."""

    returncode: int
    """Negative: the signal that ended it."""
    stdout: str
    stderr: str


class Command:
    """A process of `python -m MODULE WORDS...`; `env` is added to the environment."""

    def __init__(self, *words: object, module: str = "omniopd", env: Mapping[str, str] | None = None) -> None:
        self._said = tempfile.TemporaryDirectory()
        environment = {**os.environ, **(env or {})}
        arguments = (module, [str(word) for word in words], environment, Path(self._said.name))
        self._process = _FORKS.Process(target=_become, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 120) -> Finished:
        """Until it has ended."""
        self._process.join(timeout_s)
        assert self._process.exitcode is not None, f"still running after {timeout_s} s"
        texts = [Path(self._said.name, name).read_text(errors="replace") for name in ("stdout", "stderr")]
        return Finished(self._process.exitcode, *texts)


def finish(*words: object, env: Mapping[str, str] | None = None) -> Finished:
    """Run `omniopd WORDS...` to its end, which has to be a good one."""
    done = Command(*words, env=env).wait()
    assert done.returncode == 0, done.stderr
    return done


def run_ranks(count: int, module: str, *words: object, timeout_s: float = 200) -> None:
    """`python -m MODULE WORDS...` once for each rank, with the environment that torchrun gives them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count,
              "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
    ranks = []
    for rank in range(count):
        environment = {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        ranks.append(Command(*words, module=module, env=environment))
    try:
        for rank in ranks:
            done = rank.wait(timeout_s)
            assert done.returncode == 0, done.stderr[-8000:]
    finally:
        for rank in ranks:
            if rank.running:
                rank.send_signal(signal.SIGKILL)


def _become(module: str, words: list[str], environment: dict[str, str], folder: Path) -> None:
    """What the forked process does."""
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
