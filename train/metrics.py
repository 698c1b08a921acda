"""What each optimizer step measured: a line of JSON at once, one Parquet table when the round is done.

metrics/train-round=000.jsonl   appended to after every step; a resumed round cuts off what it does again
metrics/train-round=000/        the same rows as a table, with units and docs
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa

from ..store import files
from ..store.layout import RunDir
from ..store.schema import TableSpec
from ..store.table import Table

if TYPE_CHECKING:
    from .objective import Objective
    from .step import StepSums
    from .weights import BatchFacts


@dataclass(frozen=True)
class BatchReport:
    """What a step has to say that is not in its sums; NaN where a table is not on this machine."""

    phi: float
    reward: float
    repetition: float
    response_tokens: float
    padding: float
    seconds: float
    tokens: int


@dataclass(frozen=True)
class StepMetrics:
    """One row of the metrics; null where a step has nothing to measure, or what it measured is not finite."""

    step: int
    loss: float | None
    chunk_loss_sum: float | None
    chunk_loss: float | None
    kl_sum: float | None
    kl_mean: float | None
    reverse_kl_mean: float | None
    audited_tokens: int
    unaudited_tokens: int
    mean_weight: float | None
    audited_nll: float | None
    audited_entropy: float | None
    behaviour_gap: float | None
    clipped_share: float | None
    grad_norm: float | None
    lr: float
    seconds: float
    tokens_per_s: float
    padding: float
    phi: float | None
    reward: float | None
    repetition: float | None
    response_tokens: float
    skipped: bool


def _column(name: str, type_: pa.DataType, doc: str, unit: str = "") -> pa.Field:
    return pa.field(name, type_, metadata={"doc": doc, "unit": unit} if unit else {"doc": doc})


TRAIN_METRICS = TableSpec(
    "train_metrics",
    "one row an optimizer step",
    pa.schema(
        [
            _column("step", pa.int32(), "step of the round, from 0"),
            _column("loss", pa.float64(), "the objective, normalized: what was differentiated"),
            _column("chunk_loss_sum", pa.float64(), "the chunk term, summed over audited tokens", "nats"),
            _column("chunk_loss", pa.float64(), "the chunk term per audited token", "nats"),
            _column("kl_sum", pa.float64(), "KL(ref || policy) summed over anchored tokens, without beta", "nats"),
            _column(
                "kl_mean", pa.float64(), "KL(ref || policy) per anchored token; null without a frozen model", "nats"
            ),
            _column(
                "reverse_kl_mean", pa.float64(), "KL(policy || teacher) per anchored token (opd), else null", "nats"
            ),
            _column("audited_tokens", pa.int64(), "audited tokens of the global batch", "tokens"),
            _column("unaudited_tokens", pa.int64(), "other response tokens of the global batch", "tokens"),
            _column("mean_weight", pa.float64(), "mean pi_teacher over audited tokens, before centering"),
            _column("audited_nll", pa.float64(), "mean -log pi(y) over audited tokens", "nats"),
            _column("audited_entropy", pa.float64(), "mean entropy of the policy at audited tokens", "nats"),
            _column(
                "behaviour_gap", pa.float64(), "mean |log pi(y) - behavior log-prob|; 0 on-policy, null in sft", "nats"
            ),
            _column("clipped_share", pa.float64(), "share of audited tokens whose ratio was capped or clipped"),
            _column("grad_norm", pa.float64(), "norm of the gradient before clipping"),
            _column("lr", pa.float64(), "learning rate of the step"),
            _column("seconds", pa.float64(), "wall time of the step", "s"),
            _column("tokens_per_s", pa.float64(), "tokens of the global batch, prompts included, per second", "1/s"),
            _column("padding", pa.float64(), "share of the computed positions that are padding"),
            _column("phi", pa.float64(), "mean similarity of the batch's chunks to the teacher's continuations"),
            _column("reward", pa.float64(), "mean reward of the batch's trajectories (grpo), else null"),
            _column("repetition", pa.float64(), "mean share of a response covered by its longest repeated sequence"),
            _column("response_tokens", pa.float64(), "mean length of a response", "tokens"),
            _column("skipped", pa.bool_(), "loss or gradient was not finite, and the weights were not updated"),
        ]
    ),
    ("step",),
    65536,
)


def step_metrics(
    step: int, facts: "BatchFacts", sums: "StepSums", batch: BatchReport, objective: "Objective", *, sampled: bool,
    norm: float, lr: float, updated: bool,
) -> StepMetrics:  # fmt: skip
    """Turn the sums of a step into its row. `sampled`: the student wrote the sequences, with log-probs."""
    audited, anchored = facts.audited_tokens, facts.anchored_tokens
    forward, reverse = objective.forward_kl, objective.reverse_kl

    def mean(total: float, count: int) -> float | None:
        return _finite(total / count) if count else None

    return StepMetrics(
        step=step,
        loss=_finite((sums.chunk_loss + forward * sums.kl + reverse * sums.reverse_kl) / facts.normaliser),
        chunk_loss_sum=_finite(sums.chunk_loss),
        chunk_loss=mean(sums.chunk_loss, audited),
        kl_sum=_finite(sums.kl) if forward or reverse else None,
        kl_mean=mean(sums.kl, anchored) if forward or reverse else None,
        reverse_kl_mean=mean(sums.reverse_kl, anchored) if reverse else None,
        audited_tokens=audited,
        unaudited_tokens=facts.unaudited_tokens,
        mean_weight=facts.mean_weight if audited else None,
        audited_nll=mean(sums.nll, audited),
        audited_entropy=mean(sums.entropy, audited),
        behaviour_gap=mean(sums.gap, audited) if sampled else None,
        clipped_share=mean(sums.clipped, audited),
        grad_norm=_finite(norm),
        lr=lr,
        seconds=batch.seconds,
        tokens_per_s=batch.tokens / batch.seconds,
        padding=batch.padding,
        phi=_finite(batch.phi),
        reward=_finite(batch.reward),
        repetition=_finite(batch.repetition),
        response_tokens=batch.response_tokens,
        skipped=not updated,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class MetricsLog:
    """The metrics of one round. Rank 0 alone writes."""

    def __init__(self, run: RunDir, index: int) -> None:
        self.path = run.train_steps(index)
        self.table = Table(run.train_metrics(index), TRAIN_METRICS)

    def rows(self) -> list[dict[str, Any]]:
        """The steps logged so far; a line that a crash cut short does not count."""
        return read_lines(self.path)

    def rewind(self, step: int) -> None:
        """Drop the rows of `step` and later ones, which are about to be done again."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in self.rows() if row["step"] < step]
        files.write_text(self.path, "".join(orjson.dumps(row).decode() + "\n" for row in kept))

    def append(self, metrics: StepMetrics) -> None:
        with self.path.open("ab") as file:
            file.write(orjson.dumps(asdict(metrics)) + b"\n")

    def finish(self) -> None:
        """Write all rows as a table."""
        self.table.replace([pa.Table.from_pylist(self.rows(), schema=TRAIN_METRICS.schema)], {})


def read_lines(path: Path, offset: int = 0) -> list[dict[str, Any]]:
    """Rows of a metrics file from row `offset` on, whole lines only; [] where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [orjson.loads(line) for line in lines[offset:]]
