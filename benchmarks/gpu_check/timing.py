"""Times and memory on the device, or on a CPU where there is none."""

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if CUDA else "cpu")


def wait() -> None:
    """Until the device has done what it was given."""
    if CUDA:
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], repeats: int = 5, warm_up: int = 2) -> float:
    """Median time of a piece of work."""
    for _ in range(warm_up):
        work()
    taken: list[float] = []
    for _ in range(repeats):
        wait()
        started = time.perf_counter()
        work()
        wait()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def peak(work: Callable[[], object]) -> dict[str, Any]:
    """Most memory that a piece of work holds above what was there, and altogether, GB; nothing on a CPU."""
    if not CUDA:
        work()
        return {}
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    wait()
    most = torch.cuda.max_memory_allocated()
    return {"above_gb": round((most - before) / 1e9, 2), "peak_gb": round(most / 1e9, 2)}


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Relative error of a tensor, by norms."""
    return ((found.double() - exact.double()).norm() / exact.double().norm()).item()
