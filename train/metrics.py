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
from ..store.schema import Column, TableSpec
from ..store.table import Table

if TYPE_CHECKING:
    from .objective import LossTerms
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


TRAIN_METRICS = TableSpec(
    "train_metrics",
    "one row an optimizer step",
    (
        Column("step", "int32", "step of the round, from 0"),
        Column("loss", "float64", "the objective, normalized: what was differentiated"),
        Column("chunk_loss_sum", "float64", "the chunk term, summed over audited tokens", "nats"),
        Column("chunk_loss", "float64", "the chunk term per audited token", "nats"),
        Column("kl_sum", "float64", "KL(ref || policy) summed over anchored tokens, without beta", "nats"),
        Column("kl_mean", "float64", "KL(ref || policy) per anchored token; null without a frozen model", "nats"),
        Column("reverse_kl_mean", "float64", "KL(policy || teacher) per anchored token (opd), else null", "nats"),
        Column("audited_tokens", "int64", "audited tokens of the global batch", "tokens"),
        Column("unaudited_tokens", "int64", "other response tokens of the global batch", "tokens"),
        Column("mean_weight", "float64", "mean pi_teacher over audited tokens, before centering"),
        Column("audited_nll", "float64", "mean -log pi(y) over audited tokens", "nats"),
        Column("audited_entropy", "float64", "mean entropy of the policy at audited tokens", "nats"),
        Column("behaviour_gap", "float64", "mean |log pi(y) - behavior log-prob|; 0 on-policy, null in sft", "nats"),
        Column("clipped_share", "float64", "share of audited tokens whose ratio was capped or clipped"),
        Column("grad_norm", "float64", "norm of the gradient before clipping"),
        Column("lr", "float64", "learning rate of the step"),
        Column("seconds", "float64", "wall time of the step", "s"),
        Column("tokens_per_s", "float64", "tokens of the global batch, prompts included, per second", "1/s"),
        Column("padding", "float64", "share of the computed positions that are padding"),
        Column("phi", "float64", "mean similarity of the batch's chunks to the teacher's continuations"),
        Column("reward", "float64", "mean reward of the batch's trajectories (grpo), else null"),
        Column("repetition", "float64", "mean share of a response covered by its longest repeated sequence"),
        Column("response_tokens", "float64", "mean length of a response", "tokens"),
        Column("skipped", "bool", "loss or gradient was not finite, and the weights were not updated"),
    ),
    ("step",),
    65536,
)


def step_metrics(
    step: int, facts: "BatchFacts", sums: "StepSums", batch: BatchReport, terms: "LossTerms", *, sampled: bool,
    norm: float, lr: float, updated: bool,
) -> StepMetrics:  # fmt: skip
    """Turn the sums of a step into its row. `sampled`: the student wrote the sequences, with log-probs."""
    audited, anchored = facts.audited_tokens, facts.anchored_tokens
    forward, reverse = terms.forward_kl, terms.reverse_kl

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
