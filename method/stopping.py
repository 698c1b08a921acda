# pyright: strict
"""How many rollouts a chunk needs: N, or as many as its own answers call for.

The weight of a chunk is off from the expected similarity μ by at most

    |π̂ - μ|  <=  |π̂ - μ~|  +  |μ~ - μ|

The first part is the noise that Theorem 4.2 bounds; Hoeffding's inequality, which it uses, does not look at the
answers, so its N is the same for every chunk. Here the noise is measured instead. The second part is the pull of the
prior, as in Theorem 4.1c. docs/decisions/0007-when-a-chunk-has-rollouts-enough.md has the reasons and the alternatives.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..store.config import Config

FIRST = 4
"""Rollouts before the first checkpoint: from fewer, a spread cannot be told."""
STEP = 2
"""Rollouts between checkpoints."""
_CONFIDENCE = 0.95
_PRIOR_WEIGHT = 1
"""How many observations the largest possible spread counts for: a few equal answers do not prove that all are."""


Similar = Callable[[Sequence[str], Sequence[str]], list[float | None]]
"""φ of chunks and rollouts, pair by pair; None where a chunk has nothing to compare."""


class StoppingRule(Protocol):
    """Decides how many of a chunk's rollouts are wanted."""

    @property
    def most(self) -> int:
        """N, or the most of it."""
        ...

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The numbers of rollouts at which it may stop, rising, the last of which is the most."""
        ...

    def phi(self, chunks: Sequence[str], texts: Sequence[str | None]) -> list[float | None]:
        """Similarity of chunks and rollouts, pair by pair, as far as it decides anything. None: there is no answer."""
        ...

    def target_count(self, phi: Mapping[int, float | None], prior: float) -> int:
        """How many rollouts (0 to that number) a chunk should have, as far as its answers tell.

        Args:
            phi: Similarity of each rollout that is there; None: it failed or was refused, so it tells nothing.
            prior: π̄ of Eq. 4.
        """
        ...


@dataclass(frozen=True)
class Fixed:
    """N rollouts, whatever they say."""

    most: int

    @property
    def checkpoints(self) -> tuple[int, ...]:
        return (self.most,)

    def phi(self, chunks: Sequence[str], texts: Sequence[str | None]) -> list[float | None]:
        return [None] * len(texts)

    def target_count(self, phi: Mapping[int, float | None], prior: float) -> int:
        return self.most


@dataclass(frozen=True)
class Adaptive:
    """Look after 4, 6, 8, ... rollouts, and stop where the interval of π̂ is narrow enough.

    A checkpoint sees the rollouts below its number and no other, so an audit that was killed asks for what an
    undisturbed one would have asked for.
    """

    most: int
    precision: float
    alpha: float
    similar: Similar

    @property
    def checkpoints(self) -> tuple[int, ...]:
        return adaptive_checkpoints(self.most)

    def phi(self, chunks: Sequence[str], texts: Sequence[str | None]) -> list[float | None]:
        pairs = zip(self.similar(chunks, [text or "" for text in texts]), texts, strict=True)
        return [None if text is None else phi for phi, text in pairs]

    def target_count(self, phi: Mapping[int, float | None], prior: float) -> int:
        for checkpoint in self.checkpoints[:-1]:
            if any(index not in phi for index in range(checkpoint)):
                return checkpoint
            seen = [value for index in range(checkpoint) if (value := phi[index]) is not None]
            if half_width(seen, prior, self.alpha) <= self.precision:
                return checkpoint
        return self.most


def adaptive_checkpoints(most: int) -> tuple[int, ...]:
    """The numbers of rollouts at which an adaptive chunk may stop."""
    return (*range(min(FIRST, most), most, STEP), most)


def half_width(phi: list[float], prior: float, alpha: float) -> float:
    """How far π̂ may be from μ, at 95 % for a single checkpoint.

        t sqrt(n s²) / (n + α)  +  α |π̄ - mean φ| / (n + α)

    t is Student's quantile. s² is the sample variance, to which the largest variance that a mean of π̂ allows in [0, 1],
    π̂ (1 - π̂) (Bhatia and Davis, 2000), is added as one more observation.
    """
    n = len(phi)
    if n < 2:
        return math.inf
    mean = math.fsum(phi) / n
    weight = (math.fsum(phi) + alpha * prior) / (n + alpha)
    squares = math.fsum((value - mean) ** 2 for value in phi)
    freedom = n - 1 + _PRIOR_WEIGHT
    variance = (squares + _PRIOR_WEIGHT * weight * (1 - weight)) / freedom
    return (_quantile(freedom) * math.sqrt(n * max(variance, 0.0)) + alpha * abs(prior - mean)) / (n + alpha)


@functools.cache
def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    return float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))


def stopping_rule(config: "Config") -> StoppingRule:
    """What the config says about the number of rollouts.

    Raises:
        InputError: the similarity that decides cannot be used.
    """
    teacher = config.teacher
    if teacher.rollouts != "adaptive":
        return Fixed(teacher.rollouts)
    # Brings in what only adaptive rollouts need.
    from .similarity.metrics import similarity_of_texts

    similar = similarity_of_texts(config)
    return Adaptive(teacher.max_rollouts, teacher.precision, config.score.alpha, similar)
