# pyright: strict
"""What each training objective sums over rows, as the fused loss takes it. Pure, and cheap to import.

    loss = sum_A f(w, rho, log pi(y))  +  forward sum_U KL(q || pi)  +  reverse sum_U KL(pi || q)

over weighted rows A and anchored rows U, with q the frozen model:

    omniopd  Eq. 8         A audited tokens, w = pi_teacher        U the other response tokens, q the initial student
    sft      Eq. 1         A the teacher's answer, w = 1           U nothing
    opd      Eq. 2, §5.1   A nothing                               U the response, q the teacher
    grpo     2402.03300    A the response, w = advantage           U the response, q the initial student
"""

from dataclasses import dataclass
from typing import Literal

from ..store.sections import TrainConfig

Anchored = Literal["unaudited", "response"]
"""Which tokens are held to a frozen model: those of the response that are not audited, or all of them."""


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
class Objective:
    """The weights of the terms; all zero but the first for plain likelihood."""

    ratio: Truncated | Clipped | None = None
    """How f takes the ratio to the policy that sampled; None: f = - w log pi(y)."""
    forward_kl: float = 0.0
    reverse_kl: float = 0.0


def objective_of(train: TrainConfig, *, on_policy: bool) -> Objective:
    """The objective of a step.

    Args:
        train: the [train] section.
        on_policy: the policy is the one that sampled the batch, so that Eq. 8 needs no importance weight.
    """
    if train.objective == "sft":
        return Objective()
    if train.objective == "opd":
        return Objective(forward_kl=train.forward_kl, reverse_kl=1 - train.forward_kl)
    if train.objective == "grpo":
        return Objective(Clipped(train.clip_low, train.clip_high), forward_kl=train.beta)
    return Objective(None if on_policy else Truncated(train.importance_cap), forward_kl=train.beta)


def anchored_tokens(train: TrainConfig) -> Anchored:
    """The tokens that the divergences of an objective are summed over, where there is a frozen model."""
    return "unaudited" if train.objective == "omniopd" else "response"


def frozen_model(train: TrainConfig) -> Literal["initial", "teacher"] | None:
    """Which frozen model the objective needs beside the policy: q of its divergences."""
    if train.objective == "opd":
        return "teacher"
    return "initial" if train.objective != "sft" and train.beta > 0 else None
