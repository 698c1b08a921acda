"""The metrics of each step for those who watch: TensorBoard always, Weights & Biases where it is asked for.

metrics/tensorboard/train    one run of all rounds, its step counted on from round to round
"""

import hashlib
import importlib.util
from dataclasses import asdict
from typing import Any

from ..store.errors import InputError
from ..store.layout import RunDir
from .metrics import MetricsLog, StepMetrics


def check_wandb() -> None:
    """
    Raises:
        InputError: wandb is not installed.
    """
    if importlib.util.find_spec("wandb") is None:
        raise InputError("train.wandb needs the package wandb.", "Run `pip install wandb`, or set it to false.")


class Trackers:
    """Where the metrics of one round go, beside the run's own files."""

    def __init__(self, run: RunDir, index: int, start: int, *, wandb: bool) -> None:
        """
        Args:
            run: the run.
            index: the round.
            start: step of the round that comes next; what was logged of it before is dropped.
            wandb: log to Weights & Biases too.
        """
        from torch.utils.tensorboard.writer import SummaryWriter

        self._before = sum(len(MetricsLog(run, earlier).rows()) for earlier in range(index))
        folder = run.metrics / "tensorboard" / "train"
        self._board = SummaryWriter(folder, purge_step=self._before + start)
        self._wandb: Any = None
        if wandb:
            import wandb as package  # pyright: ignore[reportMissingImports]

            # The id makes a resumed run continue in the same place.
            path = run.path.resolve()
            id_ = hashlib.sha256(str(path).encode()).hexdigest()[:16]
            self._wandb = package.init(project="omniopd", name=path.name, id=id_, resume="allow", dir=str(run.metrics))

    def log(self, metrics: StepMetrics) -> None:
        """Log one step; what it has no value for is left out."""
        step = self._before + metrics.step
        values = {f"train/{name}": float(value) for name, value in asdict(metrics).items() if value is not None}
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def close(self) -> None:
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()
