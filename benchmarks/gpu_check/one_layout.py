"""A rank of `layouts`: steps, a checkpoint, and the step after it again.

torchrun --nproc-per-node 8 -m gpu_check.one_layout JOB.json OUT.json
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from omniopd.store.sections import TrainConfig
from omniopd.train.checkpoint import Checkpoints, Position
from omniopd.train.memory import training_need
from omniopd.train.objective import loss_terms
from omniopd.train.parallel import model_parallel, on_device, rank, repeatable, share, world

from .learner import learner, micro_batch
from .sizes import Sizes, architecture
from .timing import CUDA, peak, seconds, wait

MICRO_BATCHES = 4
"""Of a rank in a step."""

SAME = 0.02
"""Relative difference of two gradient norms from the same state, in bfloat16."""


def measure(sizes: Sizes, section: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Figures of this rank; collective."""
    with world() as device:
        common = {"micro_batch": 1, "precision": "bf16", "recompute": True}
        train = on_device(TrainConfig.model_validate(common | section), device)
        with repeatable(train), model_parallel(train):
            tokens, arch = sizes.lengths[0], architecture(sizes.shape)
            made = learner(sizes.shape, train, device)
            batch, facts = micro_batch(sizes.shape, tokens // train.context_parallel)

            def step(lr: float = 1e-6) -> float:
                terms = loss_terms(train, facts, on_policy=True)
                return made.update(made.gradients([batch] * MICRO_BATCHES, facts, terms), lr)[0]

            step()
            taken, held = seconds(step, 3), peak(step)
            checkpoints = Checkpoints(folder / "c")
            if dist.get_rank() == 0:
                checkpoints.begin({})
            dist.barrier()
            started = time.perf_counter()
            checkpoints.save(made, Position(1))
            saved = time.perf_counter()
            norms, loaded = list[float](), 0.0
            for _ in range(2):
                loading = time.perf_counter()
                checkpoints.load(made, "step=000001")
                wait()
                loaded = time.perf_counter() - loading
                norms.append(step(1e-3))
            sequences = MICRO_BATCHES * share(train).ranks
            need = training_need(
                arch, train, processes=dist.get_world_size(), longest=tokens, frozen=arch, fused=CUDA
            )  # fmt: skip
            off = abs(norms[1] / norms[0] - 1)
            return {
                "s": taken, "tokens_a_second": sequences * tokens / taken, "save_s": saved - started,
                "load_s": loaded, "norms": norms, "estimate_gb": round(need.total / 1e9, 2), **held,
                "ok": off == 0 if train.deterministic else off < SAME,
            }  # fmt: skip


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    row = measure(Sizes(**job["sizes"]), job["section"], Path(job["folder"]))
    if rank() == 0:
        Path(sys.argv[2]).write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    main()
