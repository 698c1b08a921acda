"""Host memory that a checkpoint takes beside what the trainer holds, while it is written and while it is read.

    python benchmarks/bench_checkpoint.py

A CPU's host memory holds the model and the optimizer's state too, so what is measured is how far the resident memory
of a rank rises above that (VmHWM, which Linux can reset), in bytes a parameter of the model. On a GPU the state is
elsewhere, and the tensor that is on its way to the disk is added. Limit: 1.5 times the optimizer's state of a rank.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from omniopd.store.architecture import Architecture
from omniopd.store.sections import TrainConfig
from omniopd.train.checkpoint import Checkpoints, Position
from omniopd.train.model import build
from omniopd.train.parallel import model_parallel, world
from omniopd.train.step import Learner, StepSums

SETTINGS = [
    (precision, distributed, ranks)
    for precision in ("fp32", "bf16")
    for distributed, ranks in ((False, 1), (True, 1), (True, 2))
]


def rises(work: Callable[[], object]) -> tuple[int, float]:
    """Bytes by which the resident memory was higher during `work` than before it, and the seconds that it took."""
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    before, start = status("VmRSS"), time.perf_counter()
    work()
    return status("VmHWM") - before, time.perf_counter() - start


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def child(precision: str, distributed: bool, folder: Path) -> None:
    """Write and read one checkpoint; rank 0 prints a line of JSON with the rank that took most."""
    arch = Architecture("qwen3", 8, 1024, 3072, 16, 8, 64, 32768, 4096, True, 1e-6, 1e6, None)
    train = TrainConfig.model_validate({"precision": precision, "distributed_optimizer": distributed}).on(cuda=False)
    with world(), model_parallel(train):
        policy = build(arch, train, torch.device("cpu"))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.normal_(0, 0.02)
        learner = Learner(policy, None, train, torch.device("cpu"))
        learner.ddp.zero_grad_buffer()
        learner.update(StepSums(*[0.0] * 7), 1e-6)
        checkpoints = Checkpoints(folder)
        if dist.get_rank() == 0:
            checkpoints.begin({})
        dist.barrier()
        written, save_s = rises(lambda: checkpoints.save(learner, Position(1)))
        read, load_s = rises(lambda: checkpoints.load(learner, "step=000001"))
        parameters = sum(parameter.numel() for parameter in policy.parameters())
        rows: list[tuple[float, float]] = [(0.0, 0.0)] * dist.get_world_size()
        dist.all_gather_object(rows, (written / parameters, read / parameters))
        if dist.get_rank() == 0:
            disk = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            print(
                json.dumps(
                    {
                        "written": max(row[0] for row in rows),
                        "read": max(row[1] for row in rows),
                        "disk": disk / parameters,
                        "save_s": save_s,
                        "load_s": load_s,
                    }
                )
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], args.child[1] == "True", Path(args.child[2]))
        return
    print("bytes a parameter: limit (1.5 x the optimizer's state of a rank), written, read, on disk; seconds")
    for precision, distributed, ranks in SETTINGS:
        with tempfile.TemporaryDirectory() as folder:
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
            command = [sys.executable, *torchrun, __file__, "--child", precision, str(distributed), f"{folder}/c"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        limit = 1.5 * (8 if precision == "fp32" else 12) / (ranks if distributed else 1)
        print(
            f"{precision} {'split over' if distributed else 'whole on'} {ranks}: limit {limit:4.1f},"
            f" written {row['written']:4.1f}, read {row['read']:4.1f}, on disk {row['disk']:4.1f};"
            f" {row['save_s']:.1f} s and {row['load_s']:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
