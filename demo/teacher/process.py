"""Run the demo's teacher as a server process of its own.

``TeacherServer`` starts vLLM where it is installed and the demo's own server (server.py) elsewhere; both
speak the same API, so whoever talks to it cannot tell. The process ends with the ``with`` block.
"""

import importlib.util
import json
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import IO

MODELS = Path(__file__).resolve().parents[1] / "models"

_HOST = "127.0.0.1"
_STOP_S = 10.0
_LOG_TAIL = 2000


class TeacherError(RuntimeError):
    """The teacher's server did not start."""


class TeacherServer:
    """The teacher's process: ``with TeacherServer() as base_url: …`` (the URL ends in ``/v1``).

    ``model`` is the id to ask for. The server's output goes to a temporary file whose end is shown if it fails.
    """

    model = "teacher"

    def __init__(self, folder: Path = MODELS / "teacher", *, timeout_s: float = 180.0) -> None:
        self.folder = folder
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115

    @property
    def pid(self) -> int | None:
        """The server's process id while it runs."""
        return self._process.pid if self._process else None

    def __enter__(self) -> str:
        start = self._start_own if importlib.util.find_spec("vllm") is None else self._start_vllm
        try:
            return f"{start(time.monotonic() + self._timeout_s)}/v1"
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start_own(self, deadline: float) -> str:
        """Start the demo's server; its first line of output holds the URL."""
        # A server must not outlive whoever started it, even one that was killed.
        process = self._launch(f"{__package__}.server", "--port", "0", "--exit-with-stdin", stdout=subprocess.PIPE)
        assert process.stdout is not None
        # Not select(): it refuses descriptors above 1023.
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not selector.select(0.1):
                self._check(process, deadline)
        if line := process.stdout.readline():
            return str(json.loads(line)["url"])
        process.wait(_STOP_S)
        raise self._failure(f"ended with exit code {process.returncode}")

    def _start_vllm(self, deadline: float) -> str:
        """Start vLLM on a port that is free now, and poll until it is healthy."""
        with socket.socket() as probe:
            probe.bind((_HOST, 0))
            port = probe.getsockname()[1]
        # The model's own generation config would cap every request's length.
        options = ["--dtype", "float32", "--enforce-eager", "--generation-config", "vllm", "--port", str(port)]
        process = self._launch("vllm.entrypoints.openai.api_server", *options, stdout=self._log)
        while not _healthy(url := f"http://{_HOST}:{port}"):
            self._check(process, deadline)
            time.sleep(0.25)
        return url

    def _launch(self, module: str, *options: str, stdout: int | IO[str]) -> subprocess.Popen[str]:
        model = ["--model", str(self.folder), "--served-model-name", self.model]
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--host", _HOST, *model, *options],
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=self._log,
            text=True,
            env={"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ},
        )
        return self._process

    def _check(self, process: subprocess.Popen[str], deadline: float) -> None:
        """Raise when the server has ended or the time is up."""
        if process.poll() is not None:
            raise self._failure(f"ended with exit code {process.returncode}")
        if time.monotonic() > deadline:
            raise self._failure(f"was not ready after {self._timeout_s:.0f} s")

    def _failure(self, what: str) -> TeacherError:
        self._log.seek(0)
        return TeacherError(f"the teacher's server {what}; the end of its output:\n{self._log.read()[-_LOG_TAIL:]}")

    def _stop(self) -> None:
        """End exactly the process that was started."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            for pipe in filter(None, (process.stdin, process.stdout)):
                pipe.close()
        self._log.close()


def _healthy(url: str) -> bool:
    """Whether the server answers ``/health``."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2.0) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
