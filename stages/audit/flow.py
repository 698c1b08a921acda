"""From missing rollouts to durable rows: which chunk is asked about when, and when it has its rollouts.

Workers walk over trajectories and their chunks; the sender asks under the budget; the outbox fills the table.
"""

import asyncio
import contextlib
import gc
import itertools
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace

import aiohttp

from ...store.errors import Interrupted, OmniopdError
from .context import AuditContext
from .held import HeldFailures
from .sender import Request, Sender
from .todo import Work
from .variety import VarietyWatch


@dataclass
class ChunkState:
    """A chunk while it is asked about."""

    work: Work
    last_turn: bool
    """Whether this is the second turn of a chunk that ran out of attempts."""
    missing: tuple[int, ...]
    phi: dict[int, float | None]
    """Similarity of the rollouts that are there, as far as it decides how many more are asked for."""
    texts: dict[int, str | None] = field(default_factory=dict[int, str | None])
    """What came since `missing` and `phi` were brought up to date; None: given up, which is recorded."""
    warm: bool = False
    """Whether the prefix has been sent: the server's cache holds it."""
    put_back: bool = False
    """Whether the rest is to be asked for later."""

    @classmethod
    def of(cls, work: Work, last_turn: bool, held: HeldFailures) -> "ChunkState":
        """What failed for good in this audit is not asked for once more."""
        missing = tuple(index for index in work.missing if not held.gave_up(work.chunk_id, index))
        return cls(work, last_turn, missing, dict(work.phi))


class Flow:
    """One round's audit, request by request. After `run`, every answer that came is in the table, however it ended; or
    in the ledger, where the disk takes no table."""

    def __init__(self, context: AuditContext, session: aiohttp.ClientSession) -> None:
        self._context = context
        self._sender = Sender(context, session)
        self._variety = VarietyWatch(context.config.temperature)
        self._deferred: list[Work] = []
        """Chunks that ran out of attempts; they have a second turn at the end."""

    async def run(self, works: Iterable[Work]) -> None:
        """Ask for everything that is missing. Chunks of one trajectory have to follow each other.

        Raises:
            BudgetReached: the budget does not cover what is left.
            TeacherError: the teacher went away, or refuses everything.
            Interrupted: `interrupt` was called.
            StorageError: the ledger or the table cannot be written.
        """
        with _what_is_loaded_kept():
            async with self._context.outbox.written(self._sender.end):
                await self._ask_all(works, last_turn=False)
                deferred, self._deferred = self._deferred, []
                await self._ask_all(deferred, last_turn=True)
        stop, self._sender.stop = self._sender.stop, None
        if stop is not None:
            raise stop

    @property
    def held(self) -> HeldFailures:
        """What failed and is not recorded yet."""
        return self._sender.held

    def worst_case(self, work: Work) -> tuple[int, int]:
        """Most that a chunk can cost if every request is answered: nano-dollars and tokens. What is held is free."""
        choices = self._sender.choices
        missing = ChunkState.of(work, False, self._sender.held).missing
        sizes: list[int] = []
        for before, checkpoint in itertools.pairwise((0, *self._context.rule.checkpoints)):
            n = sum(before <= index < checkpoint for index in missing)
            sizes += [min(choices, n - done) for done in range(0, n, choices)]
        return self._context.worst_case(work, [missing[:size] for size in sizes])

    def interrupt(self) -> None:
        """Send nothing new; wait for what was sent, since it will be billed."""
        self._sender.end(Interrupted("Interrupted.", "Run the same command again to go on."))

    async def _ask_all(self, works: Iterable[Work], last_turn: bool) -> None:
        trajectories = (list(group) for _, group in itertools.groupby(works, lambda work: work.trajectory_id))
        workers = [self._worker(trajectories, last_turn) for _ in range(self._context.config.max_concurrency)]
        await asyncio.gather(*workers)

    async def _worker(self, queue: Iterator[list[Work]], last_turn: bool) -> None:
        """Take trajectories one after the other. A trajectory's prefixes are asked in turn, since the longer one finds
        the shorter one in the server's cache only when that was answered."""
        for trajectory in queue:
            for work in trajectory:
                await self._complete(ChunkState.of(work, last_turn, self._sender.held))

    async def _complete(self, chunk: ChunkState) -> None:
        """Ask until the chunk has as many rollouts as the stopping rule wants, or retrying cannot help."""
        while chunk.missing and self._sender.stop is None:
            target_count = self._context.rule.target_count(chunk.phi, chunk.work.prior)
            step = tuple(index for index in chunk.missing if index < target_count)
            if not step:
                self._context.advance(len(chunk.missing), self._sender.spent)
                return
            await self._ask_step(chunk, step)
            self._take_in(chunk)
            if chunk.put_back:
                self._deferred.append(replace(chunk.work, missing=chunk.missing, phi=chunk.phi))
                return

    async def _ask_step(self, chunk: ChunkState, step: tuple[int, ...]) -> None:
        """Ask for some of a chunk's rollouts. Unless the prefix is warm, the first request goes alone: it fills the
        cache for the others, shows what the server makes of `n`, and meets a poisoned prompt."""
        if not chunk.warm:
            chunk.warm = True
            await self._ask(chunk, step[: self._sender.choices], at_stake=chunk.missing)
        left = tuple(index for index in step if index not in chunk.texts)
        while left and not chunk.put_back and self._sender.stop is None:
            size = self._sender.choices
            requests = [left[start : start + size] for start in range(0, len(left), size)]
            await asyncio.gather(*(self._ask(chunk, indices, at_stake=indices) for indices in requests))
            left = tuple(index for index in left if index not in chunk.texts)

    async def _ask(self, chunk: ChunkState, indices: tuple[int, ...], at_stake: tuple[int, ...]) -> None:
        texts = await self._sender.ask(Request(chunk.work, indices, at_stake, chunk.last_turn))
        if texts is None:
            chunk.put_back = True
        else:
            chunk.texts |= texts

    def _take_in(self, chunk: ChunkState) -> None:
        """Count what came, and see what it says about the chunk."""
        texts, chunk.texts = chunk.texts, {}
        self._variety.saw(texts.values())
        chunk.missing = tuple(index for index in chunk.missing if index not in texts)
        try:
            phi = self._context.rule.phi([chunk.work.chunk_text] * len(texts), list(texts.values()))
        except OmniopdError as error:  # of a metric that somebody else wrote
            self._sender.end(error)
        else:
            chunk.phi |= zip(texts, phi, strict=True)


@contextlib.contextmanager
def _what_is_loaded_kept() -> Generator[None]:
    """What is loaded by now is no garbage: each full collection would look at all of it, at the price of a request."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
