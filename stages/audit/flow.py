"""From missing rollouts to durable rows: workers ask, the ledger guards, a writer fills the table.

An answer's rows are in the ledger's outbox before anything else happens to them; the writer moves them into the
rollouts table part by part.
"""

import asyncio
import contextlib
import hashlib
import re
import sys
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import orjson

from ...store.config import TeacherConfig
from ...store.errors import BudgetReached, Interrupted, OmniopdError, TeacherError
from ...store.ledger import NANO, Reservation, Settlement, Usage
from ...store.table import Table
from ..progress import Advance
from .client import Outcome, pause_s, post
from .group_commit import GroupCommit
from .price import Rates
from .teacher import Answer, Ask, Rollout, Teacher

_PART_REQUESTS = 4096
_SECONDS_BETWEEN_PARTS = 10.0
_REFUSED_BEFORE_GIVING_UP = 10
"""Chunks that may be refused for good before the first request has succeeded."""
_EXHAUSTED_BEFORE_GIVING_UP = 3
"""Chunks in a row, without a success between, that may run out of attempts: then it is the teacher, not the prompt."""


@dataclass(frozen=True)
class Work:
    """A chunk, and which of its N rollouts are missing."""

    chunk_id: str
    trajectory_id: str
    question: str
    prompt_text: str
    prefix: str
    missing: tuple[int, ...]
    max_tokens: int
    cuts: tuple[int, ...] = ()
    """Lengths of the trajectory's shorter prefixes."""


class Flow:
    """One round's audit. After `run`, every answer that came is in the table, however it ended."""

    def __init__(
        self, table: Table, index: int, config: TeacherConfig, teacher: Teacher, rates: Rates, commit: GroupCommit,
        advance: Advance,
    ) -> None:  # fmt: skip
        self._table = table
        self._index = index
        self._config = config
        self._teacher = teacher
        self._rates = rates
        self._commit = commit
        self._advance = advance
        self._stop: OmniopdError | None = None
        self._choices = min(config.rollouts, teacher.most_choices or config.rollouts)
        """How many continuations one request may ask for; some servers ignore `n`."""
        self._in_flight = 0
        self._settled = asyncio.Event()
        self._asked = asyncio.Event()
        self._settlements = 0
        self._succeeded = False
        self._refused = 0
        self._exhausted_in_a_row = 0
        self._deferred: list[Work] = []
        """Chunks that ran out of attempts; they have a second turn at the end."""
        self._charged_nusd = self._charged_tokens = 0
        self._warned = False

    async def run(self, session: aiohttp.ClientSession, works: Iterable[Work]) -> None:
        """Ask for everything that is missing.

        Raises:
            BudgetReached: the budget does not cover what is left.
            TeacherError: the teacher went away, or refuses everything.
            Interrupted: `interrupt` was called.
        """
        writer = asyncio.create_task(self._write_now_and_then())
        try:
            await self._ask_all(session, iter(works), last_turn=False)
            await self._ask_all(session, iter(self._deferred), last_turn=True)
        finally:
            # Not cancelled: a part that is being written must be finished before the rest is moved.
            self._asked.set()
            await writer
            await drain(self._table, self._index, self._commit)
        if self._stop is not None:
            raise self._stop

    def interrupt(self) -> None:
        """Send nothing new; wait for what was sent, since it will be billed."""
        self._end(Interrupted("Interrupted.", "Run the same command again to go on."))

    async def _write_now_and_then(self) -> None:
        while not self._asked.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked.wait(), _SECONDS_BETWEEN_PARTS)
            await _move_part(self._table, self._index, self._commit, frozenset())

    def _end(self, reason: OmniopdError) -> None:
        if self._stop is None:
            self._stop = reason
        self._settled.set()

    # -- asking

    async def _ask_all(self, session: aiohttp.ClientSession, queue: Iterator[Work], last_turn: bool) -> None:
        workers = [self._worker(session, queue, last_turn) for _ in range(self._config.max_concurrency)]
        await asyncio.gather(*workers)

    async def _worker(self, session: aiohttp.ClientSession, queue: Iterator[Work], last_turn: bool) -> None:
        for work in queue:
            if self._stop is not None:
                return
            try:
                await self._complete(session, work, last_turn)
            except OmniopdError as error:
                self._end(error)

    async def _complete(self, session: aiohttp.ClientSession, work: Work, last_turn: bool) -> None:
        """Ask until no rollout of the chunk is missing, or there is no sense in asking on."""
        missing = list(work.missing)
        attempts = 0
        while missing and self._stop is None:
            n = min(len(missing), self._choices)
            seed = _seed(self._config.seed, work.chunk_id, missing[0])
            ask = Ask(work.question, work.prompt_text, work.prefix, n, work.max_tokens, seed, work.cuts)
            request_id = await self._reserve(ask)
            if request_id is None:
                return
            sent = time.monotonic()
            url = _server(self._teacher.base_urls, work.trajectory_id)
            result = self._read(await post(session, url, self._teacher.request(ask)), ask)
            attempts += 1
            receipt = _Receipt(work.chunk_id, request_id, time.monotonic() - sent, attempts, self._teacher.continuation)
            if isinstance(result, Answer):
                got = len(result.rollouts[:n])
                await self._settle(self._bill(receipt, result, missing[:got]), got)
                missing = missing[got:]
                self._choices = min(self._choices, got) if got < n else self._choices
                self._succeeded, self._exhausted_in_a_row, attempts = True, 0, 0
            elif result.worth_retrying and attempts < self._config.max_attempts:
                await self._settle(_unbilled(result, receipt, []))
                await asyncio.sleep(pause_s(attempts, result.retry_after_s))
            else:
                await self._give_up(work, tuple(missing), result, receipt, last_turn)
                return

    async def _give_up(
        self, work: Work, missing: tuple[int, ...], outcome: Outcome, receipt: "_Receipt", last_turn: bool
    ) -> None:
        """Record rollouts as failed, or put the chunk back, or end the stage.

        Raises:
            TeacherError: it is not this chunk's fault.
        """
        fatal = self._fatal(outcome)
        if fatal or (outcome.worth_retrying and not last_turn):
            await self._settle(_unbilled(outcome, receipt, []))
            self._deferred.append(replace(work, missing=missing))
        else:
            await self._settle(
                _unbilled(outcome, receipt, _failed_rows(receipt, missing, outcome.problem)), len(missing)
            )
        if fatal:
            raise fatal

    async def _reserve(self, ask: Ask) -> str | None:
        """A request id whose worst case is reserved; None when the flow ends first.

        Raises:
            BudgetReached: it does not fit, and no request is open that could free a part of its reservation.
        """
        usage = self._teacher.worst_case(ask)
        nusd = self._rates.nusd(usage)
        while self._stop is None:
            seen = self._settlements
            reservation = Reservation(
                uuid.uuid4().hex, self._index, self._config.model, nusd, usage.tokens, self._rates.source
            )
            if await self._commit.reserve(reservation):
                self._in_flight += 1
                return reservation.request_id
            if seen == self._settlements:
                if self._in_flight == 0:
                    raise BudgetReached("The teacher's budget is reached.", "Raise teacher.budget_* to audit more.")
                self._settled.clear()
                await self._settled.wait()
        return None

    async def _settle(self, settlement: Settlement, rows: int = 0) -> None:
        await self._commit.settle(settlement)
        self._in_flight -= 1
        self._settlements += 1
        self._settled.set()
        self._charged_nusd += settlement.nusd
        self._charged_tokens += settlement.usage.tokens
        self._advance(rows, f"{self._charged_tokens} tokens, ${self._charged_nusd / NANO:.2f}")

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
        self._compare_models(answer.model)
        return answer

    def _compare_models(self, answered: str) -> None:
        """Say so, once, when another model answers; its id is in each row."""
        if not self._warned and answered and not same_model(self._config.model, answered):
            self._warned = True
            sys.stderr.write(
                f"asked for {self._config.model}, and {answered} answers; the rollouts' column `teacher` tells which\n"
            )

    def _bill(self, receipt: "_Receipt", answer: Answer, indices: Sequence[int]) -> Settlement:
        nusd = 0 if answer.usage is None else self._rates.nusd(answer.usage)
        rows = rollout_rows(receipt, answer, indices, nusd)
        # A server that reports no usage cannot be settled; the worst case stands.
        state = "unknown" if answer.usage is None else "settled"
        return Settlement(receipt.request_id, state, answer.usage or Usage(), nusd, orjson.dumps(rows))

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


async def drain(table: Table, index: int, commit: GroupCommit, present: Set[tuple[Any, ...]] = frozenset()) -> None:
    """Move the whole outbox into the rollouts table. `present`: keys that a crash may have left in both."""
    while await _move_part(table, index, commit, present):
        pass


async def _move_part(table: Table, index: int, commit: GroupCommit, present: Set[tuple[Any, ...]]) -> bool:
    """Move what is in the outbox, up to a part's size. False: there was nothing."""
    entries = await commit.call(commit.ledger.outbox, index, _PART_REQUESTS)
    rows: list[dict[str, Any]] = [row for _, payload in entries for row in orjson.loads(payload)]
    new = [row for row in rows if (row["chunk_id"], row["rollout_index"]) not in present]
    await asyncio.to_thread(table.append, new)
    await commit.call(commit.ledger.clear_outbox, [request_id for request_id, _ in entries])
    return bool(entries)


@dataclass(frozen=True)
class _Receipt:
    """What is known about a request beside its answer."""

    chunk_id: str
    request_id: str
    latency_s: float
    attempts: int
    continuation: str


def rollout_rows(receipt: _Receipt, answer: Answer, indices: Sequence[int], nusd: int) -> list[dict[str, Any]]:
    """Rows of an answer; the request's tokens and price are shared out so that the rows add up to the bill."""
    usage, n = answer.usage or Usage(), len(indices)
    return [
        _row(receipt, rollout, index, answer.model)
        | {
            "prompt_tokens": _share(usage.prompt_tokens, n, i),
            "cached_tokens": _share(usage.cached_tokens, n, i),
            "cache_write_tokens": _share(usage.cache_write_tokens, n, i),
            "completion_tokens": _share(usage.completion_tokens, n, i),
            "cost_usd": _share(nusd, n, i) / NANO,
        }
        for i, (index, rollout) in enumerate(zip(indices, answer.rollouts, strict=False))
    ]


def _failed_rows(receipt: _Receipt, indices: Sequence[int], problem: str) -> list[dict[str, Any]]:
    return [_row(receipt, Rollout("failed", None, problem), index, None) for index in indices]


def _row(receipt: _Receipt, rollout: Rollout, index: int, model: str | None) -> dict[str, Any]:
    return {
        "chunk_id": receipt.chunk_id,
        "rollout_index": index,
        "teacher": model,
        "text": rollout.text,
        "status": rollout.status,
        "finish_reason": rollout.finish_reason,
        "latency_s": receipt.latency_s,
        "attempts": receipt.attempts,
        "continuation": receipt.continuation,
        "request_id": receipt.request_id,
    }


def _unbilled(outcome: Outcome, receipt: _Receipt, rows: list[dict[str, Any]]) -> Settlement:
    """The end of a request without a usable answer."""
    state = "released" if outcome.kind in ("unsent", "refused") else "unknown"
    return Settlement(receipt.request_id, state, payload=orjson.dumps(rows) if rows else None)


def _seed(seed: int | None, chunk_id: str, first: int) -> int | None:
    """Seed of a request, 31 bits: a chunk's requests must not all draw the same continuation."""
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}|{chunk_id}|{first}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def same_model(asked: str, answered: str) -> bool:
    """Whether an answer's model id is the one asked for, or a dated version of it."""
    return re.fullmatch(re.escape(asked) + r"([-@:](\d[\w.-]*|latest))?", answered) is not None


def _server(base_urls: tuple[str, ...], trajectory_id: str) -> str:
    """All requests of a trajectory go to one server, whose cache holds their common prefix."""
    return base_urls[zlib.crc32(trajectory_id.encode()) % len(base_urls)]


def _share(total: int, n: int, i: int) -> int:
    return total // n + (i < total % n)
