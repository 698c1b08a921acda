"""`make gpu-check` at small sizes: the code that a borrowed GPU runs must not fail there for the first time."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


def checked(tmp_path: Path, *checks: str) -> list[dict[str, Any]]:
    """The rows of some checks, all of which came to their end."""
    out = tmp_path / "check.json"
    search = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "gpu_check", "--tiny", "--only", *checks, "--out", str(out)],
        env=os.environ | {"PYTHONPATH": search}, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())
    assert {row["check"] for row in rows} == set(checks)
    assert not [row for row in rows if "error" in row]
    return rows


@pytest.mark.slow
def test_the_gpu_check_runs_to_its_end_on_a_cpu(tmp_path: Path) -> None:
    rows = checked(tmp_path, "environment", "kernels", "losses", "steps", "lora", "checkpoints", "sampling")
    assert [row["ok"] for row in rows if "gradient_error" in row] == [True]
    assert [row["repeatable"] for row in rows if row["check"] == "checkpoints" and "norms" in row] == [True] * 3


@pytest.mark.slow
def test_its_layouts_do_so_in_two_processes(tmp_path: Path) -> None:
    rows = [row for row in checked(tmp_path, "layouts") if "layout" in row]
    assert len(rows) == len({row["layout"] for row in rows}) > 5
    assert all(row["norms"][0] == row["norms"][1] for row in rows), "on a CPU to the bit"
