# pyright: strict
"""What a round will ask for, predicted before and compared with the bill afterwards. Pure, given the dialect.

Tokens are counted by the student's tokenizer; the teacher's count differs a little, and by what its template adds.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from ...method.objectives.registry import objective_of
from ...method.stopping import adaptive_checkpoints
from ...store.config import Config
from ...store.ledger import NANO
from ...store.usage import Usage
from .price import Rates
from .teacher import Continuation
from .teachers.registry import find_dialect

_BYTES_A_TOKEN = 4


@dataclass(frozen=True)
class Shape:
    """The audited chunks of a round, as far as it matters for the price."""

    chunks: int
    prefix_tokens: int
    """Prompt and prefix, summed over chunks: M (P + L/2) a trajectory (§9)."""
    new_tokens: int
    """Those of them that no shorter prefix of the same trajectory has: what a prefix cache has to read."""
    max_tokens: int
    """Longest rollout, summed over chunks."""


@dataclass(frozen=True)
class Forecast:
    """One way to audit a round."""

    mode: Literal["live", "batch"]
    continuation: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    """Of the prompt tokens: as many as the server's cache can give, if it has one and keeps all."""
    completion_tokens: int
    """At most."""
    usd: float
    """With that cache."""
    usd_uncached: float
    """Without any cache."""
    prices: str


def forecast(
    shape: Shape, config: Config, rates: Rates, mode: Literal["live", "batch"], continuation: Continuation
) -> Forecast:
    """Predict one way to audit a round of this shape. Adaptive rollouts are counted at the most there can be.

    Raises:
        ConfigError: there is no such kind of teacher.
    """
    n = config.teacher.most_rollouts
    choices = min(n, find_dialect(config.teacher.kind).most_choices(config.teacher.model) or n)
    checkpoints = adaptive_checkpoints(n) if config.teacher.rollouts == "adaptive" else (n,)
    each = sum(-(-(checkpoint - before) // choices) for before, checkpoint in pairwise((0, *checkpoints)))
    # A whole answer continues nothing, so there is nothing to say about it.
    tells = continuation == "instruct" and objective_of(config).asks == "chunks"
    told = (len(config.teacher.system) + (len(config.teacher.instruction) if tells else 0)) // _BYTES_A_TOKEN
    prompt = each * (shape.prefix_tokens + told * shape.chunks)
    # Requests of a batch run in any order, so none can count on what another has left in the cache.
    cached = 0 if mode == "batch" else max(0, prompt - shape.new_tokens - each * told * shape.chunks)
    completion = n * shape.max_tokens
    prices = rates.batch() if mode == "batch" else rates
    with_cache, without = Usage(prompt, cached, completion), Usage(prompt, 0, completion)
    return Forecast(
        mode, continuation, each * shape.chunks, prompt, cached, completion,
        prices.nusd(with_cache) / NANO, prices.nusd(without) / NANO, prices.source,
    )  # fmt: skip


def continuations(kind: str, chosen: str) -> tuple[Continuation, ...]:
    """The ways in which a kind of teacher may be made to continue, given teacher.continuation.

    Raises:
        ConfigError: there is no such kind.
    """
    if chosen == "completion" or chosen == "prefill" or chosen == "instruct":
        return (chosen,)
    return find_dialect(kind).continuations


def as_row(prediction: Forecast) -> dict[str, Any]:
    """For the ledger."""
    return asdict(prediction)
