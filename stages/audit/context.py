# pyright: strict
"""What one round's audit works with, whether it asks request by request (flow.py) or by batches (batches/flow.py)."""

import hashlib
import secrets
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...method.stopping import StoppingRule
from ...store.errors import BudgetReached
from ...store.ledger import NANO, Budget, Caps, Reservation
from ...store.sections import TeacherConfig
from ...store.usage import Usage
from ..progress import Advance
from . import lessons
from .client import Outcome
from .group_commit import GroupCommit
from .outbox import Outbox
from .price import Rates
from .rows import believable
from .teacher import Answer, Ask, Teacher
from .todo import Work


@dataclass(frozen=True)
class AuditContext:
    """One round's audit: whom to ask, how often, at what price, and where the answers go."""

    outbox: Outbox
    round_index: int
    config: TeacherConfig
    rule: StoppingRule
    teacher: Teacher
    rates: Rates
    commit: GroupCommit
    advance: Advance
    bos: str = ""
    """Text of the token with which the student's prompts begin where it has one."""

    @property
    def most_choices(self) -> int:
        """Continuations that one request may ask for."""
        return min(self.rule.most, self.teacher.most_choices or self.rule.most)

    def ask(self, work: Work, indices: tuple[int, ...]) -> Ask:
        """Ask for some rollouts of a chunk."""
        seed = seed_of(self.config.seed, work.chunk_id, indices[0])
        holds_bos = bool(self.bos) and work.prompt_text.startswith(self.bos)
        return Ask(
            work.conversation, work.prompt_text, work.prefix, len(indices), work.max_tokens, seed, work.cuts, holds_bos
        )  # fmt: skip

    def adapted(self, form: int, outcome: Outcome) -> bool:
        """Whether a request that was refused has another form now, because of this refusal or another: then it is sent
        again. What was learned is said, once.

        Args:
            form: The teacher's form when the request was written.
        """
        if outcome.kind != "refused" or outcome.worth_retrying or outcome.about_account or outcome.from_elsewhere:
            return False
        if self.teacher.form == form and (line := self.teacher.adapt(outcome.status, outcome.body)) is not None:
            sys.stderr.write(f"{line}\n")
            lessons.remember(self.commit, self.config, self.teacher, outcome)
        return self.teacher.form != form

    def worst_case(self, work: Work, requests: Iterable[tuple[int, ...]]) -> tuple[int, int]:
        """Most that requests for rollouts of a chunk can cost together: nano-dollars and tokens."""
        estimates = (self.teacher.worst_case(self.ask(work, indices)) for indices in requests)
        usages = [self.commit.ledger.worst_case.bound(estimate) for estimate in estimates]
        return sum(map(self.rates.nusd, usages)), sum(usage.tokens for usage in usages)

    def new_id(self) -> str:
        """Begin of the ids of some requests, or the id of one: 32 letters and digits that tell whose ledger has it."""
        return self.commit.ledger.run_id + secrets.token_hex(8)

    def reservation(self, request_id: str, estimate: Usage) -> Reservation:
        """The worst case of one request, for the ledger: the dialect's estimate, or what bills have taught since."""
        worst = self.commit.ledger.worst_case.bound(estimate)
        return Reservation(
            *(request_id, self.round_index, self.config.model, self.rates.nusd(worst), worst.tokens),
            price_source=self.rates.source,
            estimate=estimate,
        )

    def read(self, outcome: Outcome, ask: Ask) -> Answer | Outcome:
        """The answer in an outcome; where it cannot be read, nobody knows what the server did."""
        if outcome.kind != "answered":
            return outcome
        try:
            answer = self.teacher.parse(outcome.body, ask)
        except (ValueError, KeyError, TypeError) as error:
            return replace(outcome, kind="unknown", reason=f"unreadable answer: {error}")
        if not answer.rollouts:
            return replace(outcome, kind="unknown", reason="an answer without a choice")
        usage = believable(answer.usage, answer.rollouts)
        return answer if usage is answer.usage else replace(answer, usage=usage)


def caps(teacher: TeacherConfig, round_index: int) -> Caps:
    """What a round's requests may cost."""
    return Caps(
        run=Budget.of(teacher.budget_usd, teacher.budget_tokens),
        round=Budget.of(teacher.round_budget_usd, teacher.round_budget_tokens),
        teacher=Budget.of(teacher.model_budget_usd, teacher.model_budget_tokens),
        round_index=round_index,
        teacher_model=teacher.model,
    )


def seed_of(seed: int | None, chunk_id: str, first: int) -> int | None:
    """Seed of a request, 31 bits: a chunk's requests must not all draw the same continuation."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}|{chunk_id}|{first}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def budget_reached(left: Budget, left_out: str = "") -> BudgetReached:
    """The error that says what nobody was asked for, such as "12 prompts".

    Args:
        left: What the budget still covers; negative where bills exceeded it, or where it was lowered.
    """
    over = [f"${-left.nusd / NANO:.6f}"] if left.nusd is not None and left.nusd < 0 else []
    over += [f"{-left.tokens} tokens"] if left.tokens is not None and left.tokens < 0 else []
    spent = " and ".join(over)
    beyond = f" {spent} beyond it are spent: by bills above the worst case, or before it was lowered." if over else ""
    rest = f" The {left_out} are left out." if left_out else ""
    return BudgetReached(f"The teacher's budget is reached.{beyond}{rest}", "Raise teacher.budget_* to audit more.")
