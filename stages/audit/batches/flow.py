"""From missing rollouts to durable rows by a provider's batch API.

What is to be asked is reserved at its worst case and written down as a batch that is intended; then as one that is
being created, before the provider hears of it; then with the provider's id. A crash at any point leaves a state from
which the next start knows what to do: nothing was sent; or look whether the batch is there; or wait for it.
"""

import asyncio
import contextlib
import itertools
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ....store.batch_book import Batch, BatchRow
from ....store.conversation import Conversation
from ....store.errors import Interrupted, TeacherError
from ....store.ledger import Reservation, Settlement
from ..choices import Choices
from ..client import Outcome, pause_s
from ..context import AuditContext, budget_reached
from ..rows import Receipt, billed, unbilled
from ..served_model import ModelWatch
from ..silence import SilenceWatch
from ..teacher import Answer, Ask
from ..todo import Work
from ..variety import VarietyWatch
from .api import Batches, Intent, NotYet, Refused, State, Unsure

_SETTLED_TOGETHER = 1024
_UNSURE_BEFORE_GIVING_UP = 20
"""Polls in a row of a batch that nobody answers."""

_LISTED_WITHIN_S = 3600.0
"""How long after its creation was asked for a batch may be missing in the provider's list, by our own clock."""

BatchState = Literal["created", "closed"]

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
        self._choices = Choices(context.most_choices)
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
        most = self._choices.most
        return [step[start : start + most] for start in range(0, len(step), most)]

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
            remote_id = await self._created(key, lines)
        except Interrupted:
            await self._give_back(key)
            raise
        except Refused as error:
            await self._give_back(key)
            raise self._problem("does not take a batch", error) from error
        except Unsure as error:
            (batch,) = [batch for batch in await self._open_batches() if batch.key == key]
            if (missing := await self._missing(batch)) is not None:
                raise missing from error
            return
        await self._mark(key, "created", remote_id)

    async def _created(self, key: str, lines: Sequence[bytes]) -> str:
        """Create a batch; again, where the provider was too busy to.

        Raises:
            Refused: it was not created.
            Unsure: it may have been.
            Interrupted: before it was created.
        """
        for attempt in itertools.count(1):
            try:
                try:
                    prepared, newest = await self._batches.prepare(key, lines), await self._batches.newest()
                except Unsure as error:
                    raise Refused(0, str(error)) from error  # nothing that costs was asked for
                await self._commit.call(self._commit.ledger.batches.begin, key, newest)
                return await self._batches.create(key, prepared, lines)
            except Refused as error:
                if not error.passing or attempt >= self._context.config.max_attempts:
                    raise
            await self._wait(pause_s(attempt, None))
        raise AssertionError

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

    async def _missing(self, batch: Batch) -> TeacherError | None:
        """Look for a batch whose creation was not seen to end. Where the provider does not list it this is said, and
        it is looked for again; after an hour it is charged in full, and its rows are asked for again."""
        ledger = self._commit.ledger
        rows = await self._commit.call(ledger.batches.unsettled, batch.key)
        known = await self._commit.call(ledger.batches.remote_ids)
        try:
            found = await self._batches.find(Intent(batch.key, rows.keys(), batch.newest_before, known))
        except NotYet:
            return None
        except (Refused, Unsure) as error:
            return self._problem("does not list its batches", error)
        if found is not None:
            await self._mark(batch.key, "created", found)
            return None
        minutes = (time.time() - batch.begun_at) / 60
        if 60 * minutes < _LISTED_WITHIN_S:
            return TeacherError(
                f"The teacher at {self._url} did not answer when batch {batch.key} was created, and does not list it.",
                f"Run the same command again in {_LISTED_WITHIN_S / 60 - minutes:.0f} minutes: it is looked for again"
                " then, before its rows are charged in full and asked for anew. If you know that it is not there, say"
                f" so: omniopd batches RUN --cancel {batch.key}.",
            )
        sys.stderr.write(f"batch {batch.key} is not listed after an hour: charged in full, and asked for again\n")
        await self._commit.call(ledger.commit, [], [Settlement(request_id, "unknown") for request_id in rows])
        await self._mark(batch.key, "closed")
        return None

    # -- fetching

    async def collect(self) -> None:
        """Wait for the batches that are open, and fetch what they bring.

        Raises:
            TeacherError: a batch failed or was cancelled, or the provider does not answer.
            Interrupted: `interrupt` was called.
        """
        unsure = 0
        while batches := await self._open_batches():
            waiting, missing = 0, None
            try:
                for batch in batches:
                    if batch.remote_id is None:
                        missing = await self._missing(batch) or missing
                        waiting += 1
                    else:
                        waiting += not await self._collected(batch, batch.remote_id)
                unsure = 0
            except (Refused, Unsure) as error:
                if isinstance(error, Refused) and not error.passing:
                    raise self._problem("refuses to show a batch", error) from error
                waiting, unsure = waiting + 1, unsure + 1
                if unsure >= _UNSURE_BEFORE_GIVING_UP:
                    raise self._problem("has stopped answering", error) from error
            finally:
                await self._context.outbox.drain()
            if missing is not None and waiting == 1:
                raise missing
            if waiting:
                await self._wait(self._context.config.poll_s)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)
        if self._stopped.is_set():
            raise Interrupted(
                "Interrupted while the provider works on a batch.", "Run the same command again to fetch it."
            )

    async def _collected(self, batch: Batch, remote_id: str) -> bool:
        """Fetch a batch if it has ended; False: not yet."""
        state = await self._batches.state(remote_id)
        if state.kind == "running":
            return False
        if state.kind == "failed":
            await self._give_back(batch.key)
            raise TeacherError(
                f"The provider refused batch {remote_id}: {state.reason or 'without a reason'}.",
                "Fix [teacher], and run the same command again.",
            )
        await self._fetch(batch, remote_id, state)
        await self._mark(batch.key, "closed")
        if self._silent is not None:
            raise self._silent
        if state.kind == "cancelled":
            raise TeacherError(
                f"Batch {remote_id} was cancelled; what was done before is kept.",
                "Run the same command again to ask for the rest.",
            )
        return True

    async def _fetch(self, batch: Batch, remote_id: str, state: State) -> None:
        """Settle a batch's rows.

        Raises:
            TeacherError: fewer answers can be read than the provider counts, for the first time.
        """
        ledger = self._commit.ledger
        open_rows = await self._commit.call(ledger.batches.unsettled, batch.key)
        form = self._forms.get(batch.key, 0)
        results: list[tuple[BatchRow, Outcome]] = []
        answered: set[str] = set()
        async for request_id, outcome in self._batches.results(remote_id):
            if outcome.kind == "answered":
                answered.add(request_id)
            # A result may come twice, and one that was fetched before a crash is settled.
            if (row := open_rows.pop(request_id, None)) is not None:
                results.append((row, outcome))
            if len(results) >= _SETTLED_TOGETHER:
                await self._settle(results, batch.begun_at, form)
                results = []
        await self._settle(results, batch.begun_at, form)
        if len(answered) < (state.answers or 0) and batch.results_seen != len(answered):
            await self._commit.call(ledger.batches.note_results, batch.key, len(answered))
            raise TeacherError(
                f"The results of batch {remote_id} are cut off or garbled: {len(answered):,} of {state.answers:,}"
                " answers can be read, and are kept.",
                "Run the same command again: what cannot be read then either is charged in full and asked for anew.",
            )
        # What has no result may have been done.
        lost = Outcome("unknown", reason="the batch ended without a result")
        await self._settle([(row, lost) for row in open_rows.values()], batch.begun_at, form)

    async def _settle(self, results: list[tuple[BatchRow, Outcome]], since: float, form: int) -> None:
        prefixes = self._prefixes_of([row.chunk_id for row, _ in results])
        texts: dict[str, list[str | None]] = {}
        settlements: list[Settlement] = []
        for row, outcome in results:
            result = self._context.read(
                outcome, Ask(Conversation.of(""), "", prefixes[row.chunk_id], len(row.indices), 0)
            )
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
            self._choices.saw(len(row.indices), len(got))
            self._watch.saw(result.model)
            self._context.advance(len(got), "")
            nusd = 0 if result.usage is None else self._context.rates.nusd(result.usage)
            return billed(receipt, result, got, nusd)
        if self._context.adapted(form, result):
            self._choices.limit(self._context.most_choices)
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

    @property
    def _url(self) -> str:
        return self._context.teacher.base_urls[0]

    def _problem(self, what: str, error: Exception) -> TeacherError:
        return TeacherError(f"The teacher at {self._url} {what} ({error}).", "Run the same command again to go on.")
