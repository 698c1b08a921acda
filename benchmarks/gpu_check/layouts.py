"""Several GPUs: for each layout the time of a step and of a checkpoint, and whether the step after it is the same."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .parity import ROOT
from .sizes import Sizes
from .timing import CUDA

LAYOUTS: dict[str, dict[str, Any]] = {
    "data": {},
    "data, split optimizer": {"distributed_optimizer": True},
    "tensor": {"tensor_parallel": 2, "sequence_parallel": True},
    "pipeline": {"pipeline_parallel": 2},
    "context": {"context_parallel": 2},
    "LoRA, tensor": {"tensor_parallel": 2, "sequence_parallel": True, "lora": {"rank": 16, "alpha": 32}},
    "repeatable": {"distributed_optimizer": True, "deterministic": True},
}

TIMEOUT_S = 600


def check(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """A row for each layout, over all GPUs; on a CPU over two processes."""
    ranks = torch.cuda.device_count() // 2 * 2 if CUDA else 2
    if ranks < 2:
        yield {"skipped": "there is one GPU"}
        return
    for name, section in LAYOUTS.items():
        yield {"layout": name, "ranks": ranks} | _measured(sizes, section, ranks)


def _measured(sizes: Sizes, section: dict[str, Any], ranks: int) -> dict[str, Any]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    with tempfile.TemporaryDirectory() as folder:
        job, out = Path(folder, "job.json"), Path(folder, "out.json")
        job.write_text(json.dumps({"sizes": asdict(sizes), "section": section, "folder": folder}), encoding="utf-8")
        command = [sys.executable, *torchrun, "--nproc-per-node", str(ranks), "-m", "gpu_check.one_layout", job, out]
        try:
            done = subprocess.run(
                list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return {"ok": False, "error": f"nothing after {TIMEOUT_S} s"}
        if done.returncode:
            return {"ok": False, "error": done.stderr[-2000:]}
        return json.loads(out.read_text(encoding="utf-8"))
