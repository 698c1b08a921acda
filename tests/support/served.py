"""A model behind a server that we did not write."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def transformers_serve(model: Path, home: Path, start_s: float = 120) -> Generator[str]:
    """`transformers serve` of a model folder. Yields the address of its API.

    Args:
        home: Where its cache of downloaded models is, which has none.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--host", "127.0.0.1",
               "--port", port, "--device", "cpu"]  # fmt: skip
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    log = home / "serve.log"
    with log.open("wb") as said, subprocess.Popen(
        list(map(str, command)), env=environment, stdout=said, stderr=said
    ) as process:  # fmt: skip
        try:
            deadline = time.monotonic() + start_s
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False
