"""`omniopd status`: rounds x stages, what is done and what is missing, and what it has cost."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ...store.config import Config
from ...store.layout import RoundDir, RunDir
from ...store.ledger import NANO, read_forecast, read_price_sources, read_totals
from ..audit.forecast import against_the_bill


@dataclass(frozen=True)
class StageStatus:
    """One stage of one round."""

    stage: str
    state: str
    """done | partial | missing"""
    rows: int
    expected: int | None
    """None where it is not known yet."""


@dataclass(frozen=True)
class RoundStatus:
    """One round."""

    round: int
    stages: list[StageStatus]
    requests: int
    teacher_tokens: int
    cost_usd: float
    cut_off: float | None
    """Share of the trajectories that ended at the limit; None without trajectories."""
    repetition: float | None
    """Mean of the trajectories' repetition; None where it was not measured."""


def read_status(run: RunDir, config: Config) -> list[RoundStatus]:
    """The state of every round that exists, from the manifests, the ledger and two small columns."""
    return [_round_status(run, round_, config) for round_ in run.rounds()]


def as_json(run: RunDir, config: Config) -> dict[str, Any]:
    """The same as a tree of plain values, with the run's totals."""
    totals = read_totals(run.ledger)
    return {
        "run": str(run.path),
        "rounds": [asdict(status) for status in read_status(run, config)],
        "cost_usd": totals.charged_nusd / NANO,
        "teacher_tokens": totals.charged_tokens,
        "reserved_tokens": totals.reserved_tokens,
        "requests": totals.requests,
        "unknown_requests": totals.unknown,
        "cached_tokens": totals.cached_tokens,
        "cache_write_tokens": totals.cache_write_tokens,
        "predictions": predictions(run),
        "prices": read_price_sources(run.ledger),
        "budget_usd": config.teacher.budget_usd,
        "budget_tokens": config.teacher.budget_tokens,
    }


def _round_status(run: RunDir, round_: RoundDir, config: Config) -> RoundStatus:
    counts = {table.spec.name: table.manifest for table in round_.tables}
    chunks = counts["chunks"]
    expected = {
        "trajectories": None,
        "rollouts": chunks.rows * config.teacher.most_rollouts if chunks.complete else None,
        "scores": chunks.rows if chunks.complete else None,
        "shards": counts["trajectories"].rows if counts["trajectories"].complete else None,
    }
    stages = [
        StageStatus(name, _state(counts[table].rows, counts[table].complete), counts[table].rows, expected[table])
        for name, table in (("generate", "trajectories"), ("audit", "rollouts"), ("score", "shards"))
    ]
    trained = round_.policy.is_dir()
    started = round_.checkpoint.is_dir()
    stages.append(StageStatus("train", "done" if trained else "partial" if started else "missing", int(trained), 1))
    totals = read_totals(run.ledger, round_.index)
    return RoundStatus(
        round_.index, stages, totals.requests, totals.charged_tokens, totals.charged_nusd / NANO, *_quality(round_)
    )


def _quality(round_: RoundDir) -> tuple[float | None, float | None]:
    """Share cut off at the limit, and mean repetition: what tells of a student that has gone astray."""
    import pyarrow.compute as pc

    table = round_.trajectories.read(["finish_reason", "repetition"])
    if table.num_rows == 0:
        return None, None
    repetition = pc.mean(table["repetition"]).as_py()  # pyright: ignore[reportAttributeAccessIssue]
    return table["finish_reason"].to_pylist().count("length") / table.num_rows, repetition


def _state(rows: int, complete: bool) -> str:
    if complete:
        return "done"
    return "partial" if rows else "missing"


def as_table(run: RunDir, config: Config) -> Any:
    """A rich table of the run."""
    from rich.table import Table

    totals = read_totals(run.ledger)
    table = Table(
        title=str(run.path), title_justify="left", caption=_caption(run, config, totals), caption_justify="left"
    )
    headings = ("round", "generate", "cut off", "repetition", "audit", "score", "train", "requests", "teacher tokens")
    for heading in (*headings, "USD"):
        table.add_column(heading, justify="right")
    for status in read_status(run, config):
        table.add_row(
            str(status.round), _cell(status.stages[0]), _share(status.cut_off), _share(status.repetition),
            *(_cell(stage) for stage in status.stages[1:]),
            str(status.requests), f"{status.teacher_tokens:,}", f"{status.cost_usd:.4f}",
        )  # fmt: skip
    return table


def _share(value: float | None) -> str:
    return "[dim]-[/]" if value is None else f"{value:.1%}"


def _cell(stage: StageStatus) -> str:
    mark = {"done": "[green]done[/]", "partial": "[yellow]partial[/]", "missing": "[dim]-[/]"}[stage.state]
    if stage.stage == "train" or stage.state == "missing":
        return mark
    of = f"/{stage.expected}" if stage.expected not in (None, stage.rows) else ""
    return f"{mark} {stage.rows}{of}"


def _caption(run: RunDir, config: Config, totals: Any) -> str:
    usd = "" if config.teacher.budget_usd is None else f" of {config.teacher.budget_usd:.2f}"
    tokens = "" if config.teacher.budget_tokens is None else f" of {config.teacher.budget_tokens:,}"
    unknown = f", {totals.unknown} requests without an answer charged in full" if totals.unknown else ""
    prices = ", ".join(read_price_sources(run.ledger))
    by = f" by {prices}" if prices else ""
    lines = "".join(f"\n{line}" for line in predictions(run))
    return (
        f"spent ${totals.charged_nusd / NANO:.4f}{usd}{by}, {totals.charged_tokens:,}{tokens} teacher tokens{unknown}"
        f"{lines}"
    )


def predictions(run: RunDir) -> list[str]:
    """For each round whose audit has begun: what was predicted, what it cost, and what became of its rollouts."""
    lines: list[str] = []
    for round_ in run.rounds():
        if (prediction := read_forecast(run.ledger, round_.index)) is not None:
            statuses = Counter(round_.rollouts.read(["status"])["status"].to_pylist())
            bill = against_the_bill(prediction, read_totals(run.ledger, round_.index), statuses)
            lines.append(f"round {round_.index}: {bill}")
    return lines
