"""`make gpu-check` at small sizes: the code that a borrowed GPU runs must not fail there for the first time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_gpu_check_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "check.json"
    checks = ["environment", "kernels", "losses", "steps", "lora", "checkpoints"]
    search = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "gpu_check", "--tiny", "--only", *checks, "--out", str(out)],
        env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert {row["check"] for row in rows} == set(checks)
    assert not [row for row in rows if "error" in row]
    assert [row["ok"] for row in rows if "gradient_error" in row] == [True]
    assert [row["repeatable"] for row in rows if row["check"] == "checkpoints" and "norms" in row] == [True] * 3
