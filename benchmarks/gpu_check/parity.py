"""The trainer's own tests of its gradient, on this device: one step of Eq. 8 against transformers in float64."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .sizes import Sizes

ROOT = Path(__file__).resolve().parents[2]


def check(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """One row; the tests' last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "tests/train/test_parity.py", "-k", "equation_8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    yield {"ok": done.returncode == 0, "tests": (done.stdout + done.stderr).strip().splitlines()[-1:]}
