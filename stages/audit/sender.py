"""One request of a live audit: reserved, paced, sent, read, settled, and sent again until it is answered or given up.

An answer's rows are in the ledger's outbox before anything else happens to them.
"""

import asyncio
import itertools
import time
import zlib
from dataclasses import dataclass

import aiohttp

from ...store.errors import OmniopdError
from ...store.ledger import NANO, Settlement
from ...store.usage import Usage
from .choices import Choices
from .client import Outcome, pause_s, post
from .concurrency import Gate
from .context import AuditContext, budget_reached
from .health import TeacherHealth
from .held import HeldFailures
from .rows import Receipt, billed, unbilled
from .served_model import ModelWatch
from .silence import SilenceWatch
from .teacher import Answer, Ask
from .todo import Work

_THROTTLED_PER_ATTEMPT = 4
"""Being told to come back later says nothing against a prompt: so many of these count as one failed attempt."""


@dataclass(frozen=True)
class Request:
    """Some rollouts of a chunk, asked for together."""

    work: Work
    indices: tuple[int, ...]
    at_stake: tuple[int, ...]
    """Rollouts that are recorded as failed if this request is given up for good."""
    last_turn: bool
    """Whether it is given up for good when its attempts run out; else it is left for later."""


class Sender:
    """All requests of one round's audit. It stops for the first reason that comes: `stop`."""

    def __init__(self, context: AuditContext, session: aiohttp.ClientSession) -> None:
        self._context = context
        self._session = session
        self.stop: OmniopdError | None = None
        """Why nothing new is sent any more."""
        self._choices = Choices(context.most_choices)
        self._gate = Gate(context.config.max_concurrency, context.config.rpm, context.config.tpm)
        self._health = TeacherHealth(context.teacher.base_urls)
        self.held = HeldFailures()
        self._watch = ModelWatch(context.config.model)
        self._silence = SilenceWatch(context.teacher.thinking_off)
        self._open = 0
        """Requests that are reserved and not settled."""
        self._settled = asyncio.Event()
        self._settlements = 0
        self._charged_nusd = self._charged_tokens = 0
        self._start = context.new_id()
        """Of this process; its requests are numbered."""
        self._numbers = itertools.count()

    @property
    def spent(self) -> str:
        """For the progress bar."""
        return f"{self._charged_tokens} tokens, ${self._charged_nusd / NANO:.2f}"

    @property
    def choices(self) -> int:
        """How many continuations one request may ask for; some servers ignore `n`."""
        return self._choices.most

    def end(self, reason: OmniopdError) -> None:
        """Send nothing new."""
        if self.stop is None:
            self.stop = reason
        self._settled.set()

    async def ask(self, request: Request) -> dict[int, str | None] | None:
        """Send a request until it is answered or given up. Returns the texts that came, by rollout index, and None for
        each rollout that is given up for good; an answer may leave some out. None instead of all that: they are to be
        asked for later, or the audit stops."""
        try:
            return await self._attempts(request)
        except OmniopdError as error:
            self.end(error)
            return None

    async def _attempts(self, request: Request) -> dict[int, str | None] | None:
        ask = self._context.ask(request.work, request.indices)
        failures, attempt = 0.0, 0
        while True:
            attempt += 1
            sent = await self._attempt(request.work, ask, attempt)
            if sent is None:
                return None
            result, receipt, form, sent_at = sent
            if isinstance(result, Answer):
                return await self._accept(request, result, receipt, sent_at)
            if self._context.adapted(form, result):
                self._choices.limit(self._context.most_choices)
                await self._settle(unbilled(receipt, known=True))
                continue
            failures += 1 / _THROTTLED_PER_ATTEMPT if result.throttled else 1
            if not result.worth_retrying or failures >= self._context.config.max_attempts:
                return await self._give_up(request, result, receipt)
            await self._settle(unbilled(receipt, result.known))
            if not result.throttled or result.retry_after_s is None:  # else the gate holds everyone back
                await asyncio.sleep(pause_s(attempt, result.retry_after_s))

    async def _attempt(self, work: Work, ask: Ask, attempt: int) -> tuple[Answer | Outcome, Receipt, int, float] | None:
        """Reserve and send once. The numbers are the teacher's form of the request, and when it was sent. None: the
        audit stops first."""
        teacher = self._context.teacher
        # All at once: while this waits, another request may change the form, and what a request can cost with it.
        worst, posted, form, continuation = (
            teacher.worst_case(ask), teacher.request(ask), teacher.form, teacher.continuation
        )  # fmt: skip
        await self._gate.enter(worst.tokens)
        used = 0
        try:
            request_id = await self._reserve(worst)
            if request_id is None:
                return None
            sent = time.monotonic()
            outcome = await post(self._session, _server(teacher.base_urls, work.trajectory_id), posted)
            latency_s = time.monotonic() - sent
            result = self._context.read(outcome, ask)
            used = worst.tokens
            if isinstance(result, Answer):
                self._gate.answered()
                self._watch.saw(result.model)
                used = used if result.usage is None else result.usage.tokens
            elif result.throttled or result.timed_out:
                # A server that queues says nothing: it answers too late, and goes on working for nobody.
                self._gate.throttled(sent, result.retry_after_s)
            return result, Receipt(work.chunk_id, request_id, latency_s, attempt, continuation), form, sent
        finally:
            self._gate.leave(worst.tokens - used)

    async def _accept(self, request: Request, answer: Answer, receipt: Receipt, sent: float) -> dict[int, str | None]:
        indices = request.indices[: len(answer.rollouts)]
        nusd = 0 if answer.usage is None else self._context.rates.nusd(answer.usage)
        await self._settle(billed(receipt, answer, indices, nusd), len(indices))
        self._choices.saw(len(request.indices), len(indices))
        self._health.answered()
        for failure, rows in self.held.answered(sent):
            await self._context.commit.record(failure, self._context.round_index)
            self._context.advance(rows, self.spent)
        if (silent := self._silence.saw(answer.rollouts)) is not None:
            self.end(silent)
        return {index: rollout.text for index, rollout in zip(indices, answer.rollouts, strict=False)}

    async def _give_up(self, request: Request, outcome: Outcome, receipt: Receipt) -> dict[int, str | None] | None:
        """Hold rollouts as failed until a request that is sent later is answered, or leave them for later (None).

        Raises:
            TeacherError: it is not this chunk's fault.
        """
        error = self._health.gave_up(outcome)
        given_up = error is None and (not outcome.worth_retrying or request.last_turn)
        if given_up:
            self.held.hold(receipt, request.at_stake, outcome.problem)
        await self._settle(unbilled(receipt, outcome.known))
        if error is not None:
            raise error
        return dict.fromkeys(request.at_stake) if given_up else None

    async def _reserve(self, worst: Usage) -> str | None:
        """A request id whose worst case is reserved; None when the audit stops first.

        Raises:
            BudgetReached: it does not fit, and no request is open that could free a part of its reservation.
        """
        while self.stop is None:
            seen = self._settlements
            request_id = f"{self._start}-{next(self._numbers)}"
            if await self._context.commit.reserve(self._context.reservation(request_id, worst)):
                self._open += 1
                return request_id
            if seen == self._settlements:
                if self._open == 0:
                    raise budget_reached(self._context.commit.ledger.left)
                self._settled.clear()
                await self._settled.wait()
        return None

    async def _settle(self, settlement: Settlement, rows: int = 0) -> None:
        await self._context.commit.settle(settlement)
        self._open -= 1
        self._settlements += 1
        self._settled.set()
        self._charged_nusd += settlement.nusd
        self._charged_tokens += settlement.usage.tokens
        self._context.advance(rows, self.spent)


def _server(base_urls: tuple[str, ...], trajectory_id: str) -> str:
    """All requests of a trajectory go to one server, whose cache holds their common prefix."""
    return base_urls[zlib.crc32(trajectory_id.encode()) % len(base_urls)]
