"""The trainer's own tests of its gradient, on this machine: one step of Eq. 8 against transformers in float64, and each
layout against one process."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from .sizes import Sizes

ROOT = Path(__file__).resolve().parents[2]


def check(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """One row; another one for two processes where there are GPUs for them."""
    yield _tested("equation_8")
    if torch.cuda.device_count() > 1:
        yield _tested("two_processes or layout")


def _tested(which: str) -> dict[str, Any]:
    """Whether the tests with such names pass, and the last line that they print."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/train/test_parity.py", "-k", which]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)
    return {"which": which, "ok": done.returncode == 0, "tests": (done.stdout + done.stderr).strip().splitlines()[-1:]}
