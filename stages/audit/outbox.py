"""From the ledger's outbox into the rollouts table.

An answer's rows are in the outbox from the transaction that settles it; they leave it once they are in the table.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Set
from typing import Any

import orjson

from ...store.errors import BusyError, OmniopdError, StorageError
from ...store.table import Table
from .group_commit import GroupCommit

_PART_REQUESTS = 4096
_SECONDS_BETWEEN_PARTS = 10.0

PresentOf = Callable[[set[str]], Set[tuple[Any, ...]]]
"""Keys of the rollouts table, of the given chunks."""


def _nothing_present(chunk_ids: set[str]) -> Set[tuple[Any, ...]]:
    return frozenset()


class Outbox:
    """Answers of a round that were paid for and are on their way into its rollouts table."""

    def __init__(self, table: Table, round_index: int, commit: GroupCommit) -> None:
        self._table = table
        self._round_index = round_index
        self._commit = commit

    async def drain(self, present_of: PresentOf = _nothing_present) -> None:
        """Move everything. `present_of`: what a crash may have left both here and in the table."""
        while await self._move_part(present_of):
            pass

    @contextlib.asynccontextmanager
    async def written(self, end: Callable[[OmniopdError], None]) -> AsyncGenerator[None]:
        """Move parts now and then for the length of a `with`, and the rest when it ends, however it ends: except where
        the ledger's disk has failed, which leaves the rest in the ledger for the next start.

        Args:
            end: Told that a part cannot be written, so that no more answers are bought.

        Raises:
            StorageError: the last parts cannot be written; their answers stay in the ledger.
        """
        done = asyncio.Event()
        writer = asyncio.create_task(self._move_now_and_then(done, end))
        try:
            yield
        finally:
            # Not cancelled: a part that is being written must be finished before the rest is moved.
            done.set()
            await writer
            if self._commit.failure is None:
                await self.drain()

    async def _move_now_and_then(self, done: asyncio.Event, end: Callable[[OmniopdError], None]) -> None:
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(done.wait(), _SECONDS_BETWEEN_PARTS)
            if self._commit.failure is not None:
                return  # the space that is left is for the answers in flight
            try:
                await self._move_part(_nothing_present)
            except (StorageError, BusyError) as error:
                end(error)
                return

    async def _move_part(self, present_of: PresentOf) -> bool:
        """Move what is there, up to a part's size. False: there was nothing."""
        ledger = self._commit.ledger
        entries = await self._commit.call(ledger.outbox, self._round_index, _PART_REQUESTS)
        if not entries:
            return False
        rows: list[dict[str, Any]] = [row for _, payload in entries for row in orjson.loads(payload)]
        present = present_of({row["chunk_id"] for row in rows})
        new = [row for row in rows if (row["chunk_id"], row["rollout_index"]) not in present]
        await asyncio.to_thread(self._table.append, new)
        await self._commit.call(ledger.clear_outbox, [request_id for request_id, _ in entries])
        return True
