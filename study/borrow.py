"""Tables that one arm takes over from another, because it would make the same ones.

A table's `made_with` names all that its rows depend on, so equal settings on equal inputs mean equal rows. In round 0
all arms have the same policy, and later those whose policies came out the same. Rollouts are the point of it: the
teacher is asked once. What is taken over stands in the rollouts table with its tokens and price, as if it had been
asked for, and not in the ledger, which holds only what was billed to this run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from ..stages.audit.price import Rates, find_rates
from ..store.config import Config, made_with
from ..store.layout import RoundDir
from ..store.ledger import NANO
from ..store.sections import TeacherConfig
from ..store.table import Table
from ..store.usage import Usage

_TOKENS = ("prompt_tokens", "cached_tokens", "cache_write_tokens")
"""Columns that hold a row's share of its request."""


def borrow(target: RoundDir, config: Config, policy: str, donors: Sequence[RoundDir]) -> list[str]:
    """Take over the tables of a round that are not begun yet. Returns their names.

    Args:
        policy: Hash of the weights that sample the round.
        donors: The same round of other arms of the same seed, the preferred one first.
    """
    return [
        name
        for name, take in (("trajectories", _trajectories), ("chunks", _chunks), ("rollouts", _rollouts))
        if not getattr(target, name).manifest.parts and take(target, config, policy, donors)
    ]


def _trajectories(target: RoundDir, config: Config, policy: str, donors: Sequence[RoundDir]) -> bool:
    wanted = {**made_with(config, "trajectories"), "policy": policy}
    for donor in donors:
        # Beside the settings, which have a dot, there are hashes of the questions: the same for one prompt file.
        made = {k: v for k, v in donor.trajectories.manifest.made_with.items() if "." in k or k == "policy"}
        if donor.trajectories.complete and made == wanted:
            target.trajectories.link(donor.trajectories)
            return True
    return False


def _chunks(target: RoundDir, config: Config, policy: str, donors: Sequence[RoundDir]) -> bool:
    for donor in donors:
        if (
            donor.chunks.complete
            and _same_parts(target.trajectories, donor.trajectories)
            and dict(donor.chunks.manifest.made_with) == made_with(config, "chunks")
        ):
            target.chunks.link(donor.chunks)
            return True
    return False


def _rollouts(target: RoundDir, config: Config, policy: str, donors: Sequence[RoundDir]) -> bool:
    if _capped_beyond_the_round(config.teacher) or config.score.weights == "constant":
        return False
    wanted = made_with(config, "rollouts")
    for donor in donors:
        if not (donor.rollouts.complete and _same_parts(target.chunks, donor.chunks)):
            continue
        made = donor.rollouts.manifest.made_with
        if dict(made) == wanted and _is_whole(donor, config):
            target.rollouts.link(donor.rollouts)
            return True
        if _asked_for_more(made, wanted) and _is_whole(donor, config, int(made["teacher.rollouts"])):
            rows = pl.DataFrame(donor.rollouts.read())
            fewer = first_rollouts(rows, config.teacher.most_rollouts, _rates(config.teacher))
            target.rollouts.replace([fewer.to_arrow()], wanted)
            return True
    return False


def _same_parts(a: Table, b: Table) -> bool:
    return a.complete and [part.sha256 for part in a.manifest.parts] == [part.sha256 for part in b.manifest.parts]


def _capped_beyond_the_round(teacher: TeacherConfig) -> bool:
    """Whether a cap counts over rounds: what was not billed here would leave more of it to later ones."""
    caps = (teacher.budget_usd, teacher.budget_tokens, teacher.model_budget_usd, teacher.model_budget_tokens)
    return caps != (None, None, None, None)


def _is_whole(donor: RoundDir, config: Config, rollouts: int | None = None) -> bool:
    """Whether no rollout is left out because a budget ended."""
    if rollouts is None and config.teacher.rollouts == "adaptive":
        return config.teacher.round_budget_usd is None and config.teacher.round_budget_tokens is None
    each = config.teacher.most_rollouts if rollouts is None else rollouts
    return donor.rollouts.manifest.rows == donor.chunks.manifest.rows * each


def _asked_for_more(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether tables differ in nothing but the number of rollouts, of which the other has more."""
    key = "teacher.rollouts"
    more, fewer = made.get(key), wanted[key]
    both = isinstance(more, int) and isinstance(fewer, int) and more > fewer
    return both and {**made, key: fewer} == dict(wanted)


def _rates(teacher: TeacherConfig) -> Rates:
    rates = find_rates(teacher)
    return rates.batch() if teacher.mode == "batch" else rates


def first_rollouts(rows: pl.DataFrame, count: int, rates: Rates) -> pl.DataFrame:
    """The first `count` rollouts of each chunk, priced as if no more had been asked for: a request's prompt is paid
    once, however many continuations it returns.

    Args:
        rows: A rollouts table.
    """
    # Where a request returned several, its prompt tokens are shared out over them.
    taken = rows.with_columns(pl.col(name).sum().over("request_id").alias(f"all_{name}") for name in _TOKENS)
    taken = taken.filter(pl.col("rollout_index") < count).sort("request_id", "rollout_index")
    size, place = pl.len().over("request_id"), pl.int_range(pl.len()).over("request_id")
    shares = [
        pl.when(pl.col(name).is_not_null())
        .then(pl.col(f"all_{name}") // size + (place < pl.col(f"all_{name}") % size).cast(pl.Int64))
        .cast(pl.Int32)
        .alias(name)
        for name in _TOKENS
    ]
    taken = taken.with_columns(shares)
    columns = ["prompt_tokens", "cached_tokens", "completion_tokens", "cache_write_tokens"]  # as Usage has them
    bills = taken.group_by("request_id").agg(pl.col(name).sum() for name in columns)
    prices = [rates.nusd(Usage(*map(int, totals))) for totals in bills.select(columns).iter_rows()]
    bills = bills.select("request_id", pl.Series("nusd", prices, dtype=pl.Int64))
    cost = (pl.col("nusd") // size + (place < pl.col("nusd") % size).cast(pl.Int64)) / NANO
    taken = taken.join(bills, on="request_id", maintain_order="left")
    taken = taken.with_columns(pl.when(pl.col("cost_usd").is_not_null()).then(cost).alias("cost_usd"))
    return taken.select(rows.columns)
