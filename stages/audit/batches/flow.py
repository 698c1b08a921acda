"""From missing rollouts to durable rows by a provider's batch API.

What is to be asked is reserved at its worst case and written down as a batch that is intended; then as one that is
being created, before the provider hears of it; then with the provider's id. A crash at any point leaves a state from
which the next start knows what to do: nothing was sent; or look whether the batch is there; or wait for it.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ....store.batch_book import Batch, BatchRow
from ....store.errors import Interrupted, TeacherError
from ....store.ledger import Reservation, Settlement
from ..client import Outcome
from ..context import AuditContext, budget_reached
from ..rows import Receipt, billed, unbilled
from ..served_model import ModelWatch
from ..silence import SilenceWatch
from ..teacher import Answer, Ask
from ..todo import Work
from ..variety import VarietyWatch
from .api import Batches, Intent, Refused, Unsure

_SETTLED_TOGETHER = 1024
_UNSURE_BEFORE_GIVING_UP = 20
"""Polls in a row of a batch that nobody answers."""

BatchState = Literal["creating", "created", "closed"]

PrefixesOf = Callable[[Sequence[str]], Mapping[str, str]]
"""Prefixes of chunks, by chunk id."""


@dataclass(frozen=True)
class _Request:
    """A request before it is in a batch."""

    row: BatchRow
    reservation: Reservation
    line: bytes


class BatchFlow:
    """One round's audit by batches. Answers that were fetched are in the table, however it ended."""

    def __init__(self, context: AuditContext, batches: Batches, prefixes_of: PrefixesOf) -> None:
        self._context = replace(context, rates=context.rates.batch())
        self._commit = context.commit
        self._batches = batches
        self._prefixes_of = prefixes_of
        self._choices = context.most_choices
        self._stopped = asyncio.Event()
        self._watch = ModelWatch(context.config.model)
        self._silence = SilenceWatch(context.teacher.thinking_off)
        self._variety = VarietyWatch(context.config.temperature)
        self._forms: dict[str, int] = {}
        """The teacher's form when a batch was written, by key; 0 for one that an earlier start wrote."""
        self._silent: TeacherError | None = None
        """Why no more batches are sent once this one is fetched."""

    def interrupt(self) -> None:
        """Poll no longer; the provider goes on."""
        self._stopped.set()

    def worst_case(self, work: Work) -> tuple[int, int]:
        """Most that what is wanted of a chunk now can cost: nano-dollars and tokens."""
        return self._context.worst_case(work, self._split(work))

    async def run(self, works: Iterable[Work]) -> None:
        """Send what is wanted of each chunk, and wait for it. A chunk may want more afterwards.

        Raises:
            BudgetReached: not even one request is covered.
            TeacherError: the provider refuses, or does not answer.
            Interrupted: `interrupt` was called.
        """
        for requests in self._filled(works):
            await self._send(requests)
        await self.collect()

    # -- sending

    def _filled(self, works: Iterable[Work]) -> Iterator[list[_Request]]:
        """Requests, as many at a time as a batch may hold."""
        filled: list[_Request] = []
        size = 0
        for request in (self._request(work, indices) for work in works for indices in self._split(work)):
            is_full = len(filled) == self._batches.most_rows or size + len(request.line) > self._batches.most_bytes
            if filled and is_full:
                yield filled
                filled, size = [], 0
            filled.append(request)
            size += len(request.line) + 1
        if filled:
            yield filled

    def _request(self, work: Work, indices: tuple[int, ...]) -> _Request:
        ask, request_id = self._context.ask(work, indices), self._context.new_id()
        return _Request(
            BatchRow(request_id, work.chunk_id, indices, 1, self._context.teacher.continuation),
            self._context.reservation(request_id, self._context.teacher.worst_case(ask)),
            self._batches.row(request_id, self._context.teacher.request(ask)),
        )

    def _split(self, work: Work) -> list[tuple[int, ...]]:
        """The rollouts that are wanted now, by request."""
        target_count = self._context.rule.target_count(work.phi, work.prior)
        step = tuple(index for index in work.missing if index < target_count)
        return [step[start : start + self._choices] for start in range(0, len(step), self._choices)]

    async def _send(self, requests: list[_Request]) -> None:
        """Reserve, write down, create.

        Raises:
            BudgetReached: none of them is covered.
            TeacherError: the provider refuses, or does not answer.
        """
        key = uuid.uuid4().hex
        self._forms[key] = self._context.teacher.form
        lines = [request.line for request in await self._intended(key, requests)]
        if not lines:
            raise budget_reached(self._commit.ledger.left)
        try:
            prepared = await self._batches.prepare(key, lines)
        except (Refused, Unsure) as error:
            await self._give_back(key)
            raise self._problem("does not take a batch", error) from error
        await self._mark(key, "creating")
        try:
            remote_id = await self._batches.create(key, prepared, lines)
        except Refused as error:
            await self._give_back(key)
            raise self._problem("does not take a batch", error) from error
        except Unsure as error:
            (batch,) = [batch for batch in await self._open_batches() if batch.key == key]
            if not await self._found(batch):
                # Not tried again by itself: each trial that is not seen to fail is charged.
                raise self._problem("did not answer when a batch was created", error) from error
            return
        await self._mark(key, "created", remote_id)

    async def _intended(self, key: str, requests: list[_Request]) -> list[_Request]:
        """Reserve requests and write them down as rows of a batch, as many as the budget covers: those."""
        ledger = self._commit.ledger
        before = await self._commit.call(ledger.batches.attempts, list({r.row.chunk_id for r in requests}))
        rows = {
            r.row.request_id: replace(r.row, attempt=before.get(r.row.chunk_id, 0) + 1) for r in requests
        }  # fmt: skip
        batch = (key, self._context.round_index, rows)
        granted = await self._commit.call(ledger.commit, [r.reservation for r in requests], [], batch)
        return [request for request, fits in zip(requests, granted, strict=True) if fits]

    async def _open_batches(self) -> list[Batch]:
        return await self._commit.call(self._commit.ledger.batches.open, self._context.round_index)

    async def _mark(self, key: str, state: BatchState, remote_id: str | None = None) -> None:
        await self._commit.call(self._commit.ledger.batches.mark, key, state, remote_id)

    async def _found(self, batch: Batch) -> bool:
        """Look for a batch whose creation was not seen to end. If it is not there, nobody knows whether it will be: it
        is charged in full."""
        ledger = self._commit.ledger
        rows = await self._commit.call(ledger.batches.unsettled, batch.key)
        known = await self._commit.call(ledger.batches.remote_ids)
        try:
            found = await self._batches.find(Intent(batch.key, rows.keys(), batch.intended_at, known))
        except (Refused, Unsure) as error:
            raise self._problem("does not list its batches", error) from error
        if found is None:
            await self._commit.call(ledger.commit, [], [Settlement(request_id, "unknown") for request_id in rows])
            await self._mark(batch.key, "closed")
            return False
        await self._mark(batch.key, "created", found)
        return True

    # -- fetching

    async def collect(self) -> None:
        """Wait for the batches that are open, and fetch what they bring.

        Raises:
            TeacherError: a batch failed or was cancelled, or the provider does not answer.
            Interrupted: `interrupt` was called.
        """
        unsure = 0
        while batches := await self._open_batches():
            waiting = 0
            try:
                for batch in batches:
                    waiting += not await self._collected(batch)
                unsure = 0
            except Unsure as error:
                waiting, unsure = waiting + 1, unsure + 1
                if unsure >= _UNSURE_BEFORE_GIVING_UP:
                    raise self._problem("has stopped answering", error) from error
            except Refused as error:
                raise self._problem("refuses to show a batch", error) from error
            finally:
                await self._context.outbox.drain()
            if waiting:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), self._context.config.poll_s)
                if self._stopped.is_set():
                    raise Interrupted(
                        "Interrupted while the provider works on a batch.", "Run the same command again to fetch it."
                    )

    async def _collected(self, batch: Batch) -> bool:
        """Fetch a batch if it has ended; False: not yet."""
        if batch.remote_id is None:
            return not await self._found(batch)
        state = await self._batches.state(batch.remote_id)
        if state.kind == "running":
            return False
        if state.kind == "failed":
            await self._give_back(batch.key)
            raise TeacherError(
                f"The provider refused batch {batch.remote_id}: {state.reason or 'without a reason'}.",
                "Fix [teacher], and run the same command again.",
            )
        await self._fetch(batch.key, batch.remote_id, batch.intended_at)
        await self._mark(batch.key, "closed")
        if self._silent is not None:
            raise self._silent
        if state.kind == "cancelled":
            raise TeacherError(
                f"Batch {batch.remote_id} was cancelled; what was done before is kept.",
                "Run the same command again to ask for the rest.",
            )
        return True

    async def _fetch(self, key: str, remote_id: str, since: float) -> None:
        open_rows = await self._commit.call(self._commit.ledger.batches.unsettled, key)
        form = self._forms.get(key, 0)
        results: list[tuple[BatchRow, Outcome]] = []
        async for request_id, outcome in self._batches.results(remote_id):
            # A result may come twice, and one that was fetched before a crash is settled.
            if (row := open_rows.pop(request_id, None)) is not None:
                results.append((row, outcome))
            if len(results) >= _SETTLED_TOGETHER:
                await self._settle(results, since, form)
                results = []
        # What has no result may have been done.
        results += [(row, Outcome("unknown", reason="the batch ended without a result")) for row in open_rows.values()]
        await self._settle(results, since, form)

    async def _settle(self, results: list[tuple[BatchRow, Outcome]], since: float, form: int) -> None:
        prefixes = self._prefixes_of([row.chunk_id for row, _ in results])
        texts: dict[str, list[str | None]] = {}
        settlements: list[Settlement] = []
        for row, outcome in results:
            result = self._context.read(outcome, Ask("", "", prefixes[row.chunk_id], len(row.indices), 0))
            if isinstance(result, Answer):
                texts.setdefault(row.chunk_id, []).extend(rollout.text for rollout in result.rollouts)
                self._silent = self._silent or self._silence.saw(result.rollouts)
            settlements.append(self._settlement(row, result, since, form))
        for chunk_texts in texts.values():
            self._variety.saw(chunk_texts)
        await self._commit.call(self._commit.ledger.commit, [], settlements)

    def _settlement(self, row: BatchRow, result: Answer | Outcome, since: float, form: int) -> Settlement:
        receipt = Receipt(row.chunk_id, row.request_id, time.time() - since, row.attempt, row.continuation)
        if isinstance(result, Answer):
            got = row.indices[: len(result.rollouts)]
            self._choices = min(self._choices, len(got))
            self._watch.saw(result.model)
            self._context.advance(len(got), "")
            nusd = 0 if result.usage is None else self._context.rates.nusd(result.usage)
            return billed(receipt, result, got, nusd)
        if self._context.adapted(form, result):
            self._choices = min(self._choices, self._context.most_choices)
            return unbilled(receipt, known=True)
        if result.worth_retrying and row.attempt < self._context.config.max_attempts:
            return unbilled(receipt, result.known)
        self._context.advance(len(row.indices), "")
        return unbilled(receipt, result.known, row.indices, result.problem)

    async def _give_back(self, key: str) -> None:
        """End a batch of which nothing was done."""
        ledger = self._commit.ledger
        rows = await self._commit.call(ledger.batches.unsettled, key)
        await self._commit.call(ledger.commit, [], [Settlement(request_id, "released") for request_id in rows])
        await self._commit.call(ledger.batches.drop, key)

    def _problem(self, what: str, error: Exception) -> TeacherError:
        url = self._context.teacher.base_urls[0]
        return TeacherError(f"The teacher at {url} {what} ({error}).", "Run the same command again to go on.")
