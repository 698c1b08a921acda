# pyright: strict
"""Many coroutines, one durable transaction: whatever arrives while a commit runs goes into the next one."""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from ...store.ledger import Ledger, Reservation, Settlement

_LINGER_S = 0.005
"""How long a commit waits for company: a sync costs the same for one request as for many."""

P = ParamSpec("P")
R = TypeVar("R")


class GroupCommit:
    """The ledger as coroutines see it. All database work happens on one thread."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._reservations: list[tuple[Reservation, asyncio.Future[Any]]] = []
        self._settlements: list[tuple[Settlement, asyncio.Future[Any]]] = []
        self._running: asyncio.Task[None] | None = None

    async def reserve(self, reservation: Reservation) -> bool:
        """Durable when it returns. False: the budget does not cover it."""
        future = asyncio.get_running_loop().create_future()
        self._reservations.append((reservation, future))
        self._start()
        return await future

    async def settle(self, settlement: Settlement) -> None:
        """Durable when it returns."""
        future = asyncio.get_running_loop().create_future()
        self._settlements.append((settlement, future))
        self._start()
        await future

    async def record(self, released: Settlement, round_index: int) -> None:
        """Store the rows of a request that was released before without them. Durable when it returns."""
        await self.call(self.ledger.record, released, round_index)

    def _start(self) -> None:
        if self._running is None:
            self._running = asyncio.get_running_loop().create_task(self._commit_until_idle())

    async def _commit_until_idle(self) -> None:
        try:
            while self._reservations or self._settlements:
                await asyncio.sleep(_LINGER_S)
                reservations, self._reservations = self._reservations, []
                settlements, self._settlements = self._settlements, []
                futures = [future for _, future in (*reservations, *settlements)]
                try:
                    granted = await self.call(
                        self.ledger.commit, [r for r, _ in reservations], [s for s, _ in settlements]
                    )
                except sqlite3.Error as error:  # a full disk, say: whoever waits must hear of it
                    for future in futures:
                        future.set_exception(error)
                    raise
                for future, result in zip(futures, [*granted, *(None for _ in settlements)], strict=True):
                    if not future.cancelled():
                        future.set_result(result)
        finally:
            self._running = None

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function of the ledger on its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: function(*args, **kwargs))
