"""From missing rollouts to durable rows: workers ask, the ledger guards, a writer fills the table.

An answer's rows are in the ledger's outbox before anything else happens to them; the writer moves them into the
rollouts table part by part.
"""

import asyncio
import contextlib
import gc
import hashlib
import itertools
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import replace
from typing import Any

import aiohttp
import orjson

from ...method.stopping import StoppingRule
from ...store.errors import BudgetReached, Interrupted, OmniopdError, TeacherError
from ...store.ledger import NANO, Reservation, Settlement
from ...store.sections import TeacherConfig
from ...store.table import Table
from ..progress import Advance
from .client import Outcome, pause_s, post
from .concurrency import Gate
from .group_commit import GroupCommit
from .price import Rates
from .rows import Receipt, billed, unbilled
from .served_model import ModelWatch
from .teacher import Answer, Ask, Teacher
from .todo import Work

_PART_REQUESTS = 4096
_SECONDS_BETWEEN_PARTS = 10.0
_REFUSED_BEFORE_GIVING_UP = 10
"""Chunks that may be refused for good before the first request has succeeded."""
_EXHAUSTED_BEFORE_GIVING_UP = 3
"""Chunks in a row, without a success between, that may run out of attempts: then it is the teacher, not the prompt."""
_THROTTLED_PER_ATTEMPT = 4
"""Being told to come back later says nothing against a prompt: so many of these count as one failed attempt."""


class Flow:
    """One round's audit. After `run`, every answer that came is in the table, however it ended."""

    def __init__(
        self, table: Table, index: int, config: TeacherConfig, rule: StoppingRule, teacher: Teacher, rates: Rates,
        commit: GroupCommit, advance: Advance,
    ) -> None:  # fmt: skip
        self._table = table
        self._index = index
        self._config = config
        self._rule = rule
        self._teacher = teacher
        self._rates = rates
        self._commit = commit
        self._advance = advance
        self._gate = Gate(config.max_concurrency, config.rpm, config.tpm)
        self._stop: OmniopdError | None = None
        self._choices = min(rule.most, teacher.most_choices or rule.most)
        """How many continuations one request may ask for; some servers ignore `n`."""
        self._open = 0
        """Requests that are reserved and not settled."""
        self._settled = asyncio.Event()
        self._asked = asyncio.Event()
        self._settlements = 0
        self._succeeded = False
        self._refused = 0
        self._exhausted_in_a_row = 0
        self._deferred: list[Work] = []
        """Chunks that ran out of attempts; they have a second turn at the end."""
        self._charged_nusd = self._charged_tokens = 0
        self._watch = ModelWatch(config.model)
        self._start = uuid.uuid4().hex
        """Of this process; its requests are numbered."""
        self._numbers = itertools.count()

    async def run(self, session: aiohttp.ClientSession, works: Iterable[Work]) -> None:
        """Ask for everything that is missing. Chunks of one trajectory have to follow each other.

        Raises:
            BudgetReached: the budget does not cover what is left.
            TeacherError: the teacher went away, or refuses everything.
            Interrupted: `interrupt` was called.
        """
        # What is loaded by now is no garbage: each full collection would look at all of it, at the price of a request.
        gc.freeze()
        self._asked.clear()
        writer = asyncio.create_task(self._write_now_and_then())
        try:
            await self._ask_all(session, works, last_turn=False)
            deferred, self._deferred = self._deferred, []
            await self._ask_all(session, deferred, last_turn=True)
        finally:
            # Not cancelled: a part that is being written must be finished before the rest is moved.
            self._asked.set()
            await writer
            await drain(self._table, self._index, self._commit)
            gc.unfreeze()
        if self._stop is not None:
            raise self._stop

    def worst_case(self, work: Work) -> tuple[int, int]:
        """Most that a chunk can cost if every request is answered: nano-dollars and tokens."""
        sizes: list[int] = []
        for before, look in itertools.pairwise((0, *self._rule.checkpoints)):
            n = sum(before <= index < look for index in work.missing)
            sizes += [min(self._choices, n - done) for done in range(0, n, self._choices)]
        usages = [self._teacher.worst_case(self._ask(work, work.missing[:size])) for size in sizes]
        return sum(map(self._rates.nusd, usages)), sum(usage.tokens for usage in usages)

    def interrupt(self) -> None:
        """Send nothing new; wait for what was sent, since it will be billed."""
        self._end(Interrupted("Interrupted.", "Run the same command again to go on."))

    async def _write_now_and_then(self) -> None:
        while not self._asked.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), _SECONDS_BETWEEN_PARTS)
            await _move_part(self._table, self._index, self._commit, _nothing_present)

    def _end(self, reason: OmniopdError) -> None:
        if self._stop is None:
            self._stop = reason
        self._settled.set()

    # -- asking

    async def _ask_all(self, session: aiohttp.ClientSession, works: Iterable[Work], last_turn: bool) -> None:
        trajectories = (list(group) for _, group in itertools.groupby(works, lambda work: work.trajectory_id))
        workers = [self._worker(session, trajectories, last_turn) for _ in range(self._config.max_concurrency)]
        await asyncio.gather(*workers)

    async def _worker(self, session: aiohttp.ClientSession, queue: Iterator[list[Work]], last_turn: bool) -> None:
        """Take trajectories one after the other. A trajectory's prefixes are asked in turn, since the longer one finds
        the shorter one in the server's cache only when that was answered."""
        for trajectory in queue:
            for work in trajectory:
                await self._complete(session, work, last_turn)

    async def _complete(self, session: aiohttp.ClientSession, work: Work, last_turn: bool) -> None:
        """Ask until the chunk has rollouts rule, or there is no sense in asking on."""
        missing, phi = work.missing, dict(work.phi)
        warm = False
        while missing and self._stop is None:
            wanted = self._rule.target_count(phi, work.prior)
            step = tuple(index for index in missing if index < wanted)
            if not step:
                self._advance(len(missing), self._spent)
                return
            texts, put_back = await self._step(session, work, missing, step, warm, last_turn)
            missing, warm = tuple(index for index in missing if index not in texts), True
            try:
                phi |= zip(texts, self._rule.phi([work.chunk_text] * len(texts), list(texts.values())), strict=True)
            except OmniopdError as error:  # of a metric that somebody else wrote
                self._end(error)
            if put_back:
                self._deferred.append(replace(work, missing=missing, phi=phi))
                return

    async def _step(
        self,
        session: aiohttp.ClientSession,
        work: Work,
        at_stake: tuple[int, ...],
        step: tuple[int, ...],
        warm: bool,
        last_turn: bool,
    ) -> tuple[dict[int, str | None], bool]:
        """Ask for some of a chunk's rollouts. Returns their texts (None: none came, which is recorded), and whether the
        rest is to be asked for later. Unless the prefix is `warm`, the first request goes alone: it fills the cache for
        the others, shows what the server makes of `n`, and meets a poisoned prompt."""
        texts: dict[int, str | None] = {}
        alone = 0 if warm else self._choices
        first, rest = step[:alone], step[alone:]
        left = await self._ask_for(session, work, first, at_stake, texts, last_turn) if first else ()
        put_back = left is None
        missing = tuple(index for index in (*(left or ()), *rest) if index not in texts)
        while missing and not put_back and self._stop is None:
            size = self._choices
            batches = [missing[start : start + size] for start in range(0, len(missing), size)]
            lefts = await asyncio.gather(*(self._ask_for(session, work, b, b, texts, last_turn) for b in batches))
            put_back = None in lefts
            missing = tuple(index for left in lefts for index in left or ())
        return texts, put_back

    async def _ask_for(
        self,
        session: aiohttp.ClientSession,
        work: Work,
        indices: tuple[int, ...],
        at_stake: tuple[int, ...],
        texts: dict[int, str | None],
        last_turn: bool,
    ) -> tuple[int, ...] | None:
        """One request, tried until it is answered or given up. Adds to `texts` what came, and None for those `at_stake`
        if they are given up for good. Returns the rollouts that the answer left out; None: they are to be asked for
        later, or the flow ends."""
        try:
            return await self._attempts(session, work, indices, at_stake, texts, last_turn)
        except OmniopdError as error:
            self._end(error)
            return None

    async def _attempts(
        self,
        session: aiohttp.ClientSession,
        work: Work,
        indices: tuple[int, ...],
        at_stake: tuple[int, ...],
        texts: dict[int, str | None],
        last_turn: bool,
    ) -> tuple[int, ...] | None:
        ask = self._ask(work, indices)
        failures = 0.0
        for attempt in itertools.count(1):
            sent = await self._attempt(session, work, ask, attempt)
            if sent is None:
                break
            result, receipt = sent
            if isinstance(result, Answer):
                got = len(result.rollouts[: ask.n])
                nusd = 0 if result.usage is None else self._rates.nusd(result.usage)
                await self._settle(billed(receipt, result, indices[:got], nusd), got)
                texts.update(zip(indices, (one.text for one in result.rollouts), strict=False))
                self._choices = min(self._choices, got) if got < ask.n else self._choices
                self._succeeded, self._exhausted_in_a_row = True, 0
                return indices[got:]
            failures += 1 / _THROTTLED_PER_ATTEMPT if result.throttled else 1
            if not result.worth_retrying or failures >= self._config.max_attempts:
                if not await self._give_up(at_stake, result, receipt, last_turn):
                    break
                texts.update(dict.fromkeys(at_stake))
                return ()
            await self._settle(unbilled(receipt, result.known))
            if not result.throttled or result.retry_after_s is None:  # else the gate holds everyone back
                await asyncio.sleep(pause_s(attempt, result.retry_after_s))
        return None

    async def _attempt(
        self, session: aiohttp.ClientSession, work: Work, ask: Ask, attempt: int
    ) -> tuple[Answer | Outcome, Receipt] | None:
        """Reserve and send once. None: the flow ends."""
        worst = self._teacher.worst_case(ask)
        await self._gate.enter(worst.tokens)
        used = 0
        try:
            request_id = await self._reserve(self._rates.nusd(worst), worst.tokens)
            if request_id is None:
                return None
            sent = time.monotonic()
            url = _server(self._teacher.base_urls, work.trajectory_id)
            outcome = await post(session, url, self._teacher.request(ask))
            latency_s = time.monotonic() - sent
            result = self._read(outcome, ask)
            used = worst.tokens
            if isinstance(result, Answer):
                self._gate.answered()
                used = used if result.usage is None else result.usage.tokens
            elif result.throttled:
                self._gate.throttled(sent, result.retry_after_s)
            return result, Receipt(work.chunk_id, request_id, latency_s, attempt, self._teacher.continuation)
        finally:
            self._gate.leave(worst.tokens - used)

    def _ask(self, work: Work, indices: Sequence[int]) -> Ask:
        seed = seed_of(self._config.seed, work.chunk_id, indices[0])
        return Ask(work.question, work.prompt_text, work.prefix, len(indices), work.max_tokens, seed, work.cuts)

    async def _give_up(self, missing: tuple[int, ...], outcome: Outcome, receipt: Receipt, last_turn: bool) -> bool:
        """Record rollouts as failed (True), or leave them for later, or end the stage.

        Raises:
            TeacherError: it is not this chunk's fault.
        """
        fatal = self._fatal(outcome)
        if fatal or (outcome.worth_retrying and not last_turn):
            await self._settle(unbilled(receipt, outcome.known))
        else:
            await self._settle(unbilled(receipt, outcome.known, missing, outcome.problem), len(missing))
            return True
        if fatal:
            raise fatal
        return False

    async def _reserve(self, nusd: int, tokens: int) -> str | None:
        """A request id whose worst case is reserved; None when the flow ends first.

        Raises:
            BudgetReached: it does not fit, and no request is open that could free a part of its reservation.
        """
        while self._stop is None:
            seen = self._settlements
            request_id = f"{self._start}-{next(self._numbers)}"
            reservation = Reservation(request_id, self._index, self._config.model, nusd, tokens, self._rates.source)
            if await self._commit.reserve(reservation):
                self._open += 1
                return request_id
            if seen == self._settlements:
                if self._open == 0:
                    raise budget_reached()
                self._settled.clear()
                await self._settled.wait()
        return None

    async def _settle(self, settlement: Settlement, rows: int = 0) -> None:
        await self._commit.settle(settlement)
        self._open -= 1
        self._settlements += 1
        self._settled.set()
        self._charged_nusd += settlement.nusd
        self._charged_tokens += settlement.usage.tokens
        self._advance(rows, self._spent)

    @property
    def _spent(self) -> str:
        return f"{self._charged_tokens} tokens, ${self._charged_nusd / NANO:.2f}"

    def _read(self, outcome: Outcome, ask: Ask) -> Answer | Outcome:
        """The answer; where it cannot be read, nobody knows what the server did."""
        if outcome.kind != "answered":
            return outcome
        try:
            answer = self._teacher.parse(outcome.body, ask)
        except (ValueError, KeyError, TypeError) as error:
            return replace(outcome, kind="unknown", reason=f"unreadable answer: {error}")
        if not answer.rollouts:
            return replace(outcome, kind="unknown", reason="an answer without a choice")
        self._watch.saw(answer.model)
        return answer

    def _fatal(self, outcome: Outcome) -> TeacherError | None:
        """The error that ends the stage where asking on is senseless."""
        url = ", ".join(self._teacher.base_urls)
        if outcome.status in (401, 403, 404):
            return TeacherError(
                f"The teacher at {url} refuses: {outcome.problem}.", "Check the key, the URL and the model id."
            )
        if outcome.worth_retrying:
            self._exhausted_in_a_row += 1
            if self._exhausted_in_a_row < _EXHAUSTED_BEFORE_GIVING_UP:
                return None
            return TeacherError(
                f"The teacher at {url} has stopped answering ({outcome.problem}).",
                "Run the same command again once it is back.",
            )
        self._refused += 1
        if self._succeeded or self._refused < _REFUSED_BEFORE_GIVING_UP:
            return None
        return TeacherError(f"The teacher at {url} refuses every request: {outcome.problem}.", "Mend [teacher].")


PresentOf = Callable[[set[str]], Set[tuple[Any, ...]]]
"""Keys of the rollouts table, of the given chunks."""


def _nothing_present(chunk_ids: set[str]) -> Set[tuple[Any, ...]]:
    return frozenset()


async def drain(table: Table, index: int, commit: GroupCommit, present_of: PresentOf = _nothing_present) -> None:
    """Move the whole outbox into the rollouts table. `present_of`: what a crash may have left in both."""
    while await _move_part(table, index, commit, present_of):
        pass


async def _move_part(table: Table, index: int, commit: GroupCommit, present_of: PresentOf) -> bool:
    """Move what is in the outbox, up to a part's size. False: there was nothing."""
    entries = await commit.call(commit.ledger.outbox, index, _PART_REQUESTS)
    if not entries:
        return False
    rows: list[dict[str, Any]] = [row for _, payload in entries for row in orjson.loads(payload)]
    present = present_of({row["chunk_id"] for row in rows})
    new = [row for row in rows if (row["chunk_id"], row["rollout_index"]) not in present]
    await asyncio.to_thread(table.append, new)
    await commit.call(commit.ledger.clear_outbox, [request_id for request_id, _ in entries])
    return True


def budget_reached(left_out: str = "") -> BudgetReached:
    """The error that says what nobody was asked for, such as "12 prompts"."""
    rest = f" The {left_out} are left out." if left_out else ""
    return BudgetReached(f"The teacher's budget is reached.{rest}", "Raise teacher.budget_* to audit more.")


def seed_of(seed: int | None, chunk_id: str, first: int) -> int | None:
    """Seed of a request, 31 bits: a chunk's requests must not all draw the same continuation."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}|{chunk_id}|{first}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def _server(base_urls: tuple[str, ...], trajectory_id: str) -> str:
    """All requests of a trajectory go to one server, whose cache holds their common prefix."""
    return base_urls[zlib.crc32(trajectory_id.encode()) % len(base_urls)]
