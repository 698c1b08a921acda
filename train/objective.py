# pyright: strict
"""What the loss of each training objective sums over rows, as the fused loss takes it. Pure, and cheap to import.

    loss = sum_A f(w, rho, log pi(y))  +  forward sum_U KL(q || pi)  +  reverse sum_U KL(pi || q)

over weighted rows A and anchored rows U, with q the frozen model:

    omniopd  Eq. 8         A audited tokens, w = pi_teacher        U the other response tokens, q the initial student
    sft      Eq. 1         A the teacher's answer, w = 1           U nothing
    opd      Eq. 2, §5.1   A nothing                               U the response, q the teacher
    grpo     2402.03300    A the response, w = advantage           U the response, q the initial student
    draft                  A the accepted tokens, w = consensus    U the response before the fork, q the initial student

Which rows and which frozen model these are is said by the objective's record (method/objectives/).
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..store.sections import TrainConfig
from .weights import BatchFacts


@dataclass(frozen=True)
class Truncated:
    """f = - w min(rho, cap) log pi(y), with no gradient through rho = pi(y) / behaviour(y)."""

    cap: float


@dataclass(frozen=True)
class Clipped:
    """f = - min(w rho, w clip(rho, 1 - low, 1 + high)), with its gradient through rho (PPO's surrogate)."""

    low: float
    high: float


@dataclass(frozen=True)
class LossTerms:
    """The weights of the terms; all zero but the first for plain likelihood."""

    ratio: Truncated | Clipped | None = None
    """How f takes the ratio to the policy that sampled; None: f = - w log pi(y)."""
    forward_kl: float = 0.0
    reverse_kl: float = 0.0


TermsOf = Callable[[TrainConfig, BatchFacts, bool], LossTerms]
"""The [train] section, the facts of the global batch, and whether the policy is the one that sampled it, to the terms
of a step."""

_TERMS: dict[str, TermsOf] = {}


def terms_for(objective: str) -> Callable[[TermsOf], TermsOf]:
    """Decorator: the function has the terms of this objective."""

    def register(terms_of: TermsOf) -> TermsOf:
        _TERMS[objective] = terms_of
        return terms_of

    return register


def loss_terms(train: TrainConfig, facts: BatchFacts, *, on_policy: bool) -> LossTerms:
    """The terms of a step.

    Args:
        train: the [train] section.
        facts: of the global batch.
        on_policy: the policy is the one that sampled the batch, so that Eq. 8 needs no importance weight.
    """
    return _TERMS[train.objective](train, facts, on_policy)


@terms_for("omniopd")
def _omniopd(train: TrainConfig, facts: BatchFacts, on_policy: bool) -> LossTerms:
    return LossTerms(None if on_policy else Truncated(train.importance_cap), forward_kl=train.beta)


@terms_for("sft")
def _sft(train: TrainConfig, facts: BatchFacts, on_policy: bool) -> LossTerms:
    return LossTerms()


@terms_for("opd")
def _opd(train: TrainConfig, facts: BatchFacts, on_policy: bool) -> LossTerms:
    return LossTerms(forward_kl=train.forward_kl, reverse_kl=1 - train.forward_kl)


@terms_for("grpo")
def _grpo(train: TrainConfig, facts: BatchFacts, on_policy: bool) -> LossTerms:
    return LossTerms(Clipped(train.clip_low, train.clip_high), forward_kl=train.beta)


@terms_for("draft")
def _draft(train: TrainConfig, facts: BatchFacts, on_policy: bool) -> LossTerms:
    # The whole loss is divided by the normaliser; the anchor's own divisor is the number of its tokens.
    return LossTerms(forward_kl=train.beta * facts.normaliser / max(1, facts.anchored_tokens))
