# pyright: strict
"""What a caller of the trainer sees. Cheap to import: no torch, no Megatron."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..store.layout import RunDir
from ..store.sections import TrainConfig
from .metrics import MetricsLog

Progress = Callable[[int, int, dict[str, Any]], None]
"""Called after each step with (steps done, steps of the round, the step's metrics as in `metrics.StepMetrics`)."""


@dataclass(frozen=True)
class TrainResult:
    """What a round's training came to."""

    policy: Path
    steps: int
    skipped: int
    """Steps whose loss or gradient was not finite."""
    trained: bool
    """False where the policy was there already."""


def result_of(run: RunDir, index: int, *, trained: bool) -> TrainResult:
    """The result of a round whose policy is written."""
    rows = MetricsLog(run, index).rows()
    return TrainResult(run.round(index).policy, len(rows), sum(row["skipped"] for row in rows), trained)


def count_steps(sequences: int, config: TrainConfig) -> int:
    """Optimizer steps of a round with this many training sequences."""
    steps = config.epochs * -(-sequences // config.global_batch)
    return steps if config.steps is None else min(steps, config.steps)
