"""The metrics of each step for TensorBoard. Other trackers are told by whoever started the stage (view/trackers).

metrics/tensorboard/train    one run of all rounds, its step counted on from round to round
"""

from dataclasses import asdict

from ..store.layout import RunDir
from .metrics import MetricsLog, StepMetrics


class TensorBoard:
    """Where the metrics of one round go, beside the run's own files."""

    def __init__(self, run: RunDir, index: int, start: int) -> None:
        """
        Args:
            run: the run.
            index: the round.
            start: step of the round that comes next; what was logged of it before is dropped.
        """
        from torch.utils.tensorboard.writer import SummaryWriter

        self._before = sum(len(MetricsLog(run, earlier).rows()) for earlier in range(index))
        self._writer = SummaryWriter(run.metrics / "tensorboard" / "train", purge_step=self._before + start)

    def log(self, metrics: StepMetrics) -> None:
        """Log one step; what it has no value for is left out."""
        for name, value in asdict(metrics).items():
            if value is not None:
                self._writer.add_scalar(f"train/{name}", float(value), self._before + metrics.step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
