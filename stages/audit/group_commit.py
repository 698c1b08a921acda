# pyright: strict
"""Many coroutines, one durable transaction: whatever arrives while a commit runs goes into the next one."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from ...store.errors import StorageError
from ...store.ledger import Ledger, Reservation, Settlement
from ...store.storage import Spare, storing

_LINGER_S = 0.005
"""How long a commit waits for company: a sync costs the same for one request as for many."""

P = ParamSpec("P")
R = TypeVar("R")


class GroupCommit:
    """The ledger as coroutines see it. All database work happens on one thread.

    Args:
        spare: Space on the ledger's disk, given up when that is full: what is in flight then can still be stored.
    """

    def __init__(self, ledger: Ledger, spare: Spare | None = None) -> None:
        self.ledger = ledger
        self._spare = spare
        self.failure: StorageError | None = None
        """Why nothing is reserved any more."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._reservations: list[tuple[Reservation, asyncio.Future[Any]]] = []
        self._settlements: list[tuple[Settlement, asyncio.Future[Any]]] = []
        self._running: asyncio.Task[None] | None = None

    async def reserve(self, reservation: Reservation) -> bool:
        """Durable when it returns. False: the budget does not cover it.

        Raises:
            StorageError: the ledger cannot be written, now or before.
        """
        future = asyncio.get_running_loop().create_future()
        self._reservations.append((reservation, future))
        self._start()
        return await future

    async def settle(self, settlement: Settlement) -> None:
        """Durable when it returns.

        Raises:
            StorageError: the ledger cannot be written.
        """
        future = asyncio.get_running_loop().create_future()
        self._settlements.append((settlement, future))
        self._start()
        await future

    async def record(self, released: Settlement, round_index: int) -> None:
        """Store the rows of a request that was released before without them. Durable when it returns."""
        await self.call(self.ledger.record, released, round_index)

    def note(self, function: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run a function of the ledger on its thread, before whatever is handed in next and without waiting for it: for
        what may be lost with a disk that fails."""
        self._thread.submit(function, *args, **kwargs)

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
                    results = await self._commit([r for r, _ in reservations], [s for s, _ in settlements])
                except Exception as error:  # whoever waits must hear of it
                    for future in futures:
                        future.set_exception(error)
                    raise
                for future, result in zip(futures, results, strict=True):
                    if future.cancelled():
                        continue
                    if isinstance(result, StorageError):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._running = None

    async def _commit(
        self, reservations: Sequence[Reservation], settlements: Sequence[Settlement]
    ) -> Sequence[bool | StorageError | None]:
        """The result of each. Once the disk has failed, nothing is reserved, and what was sent before is still settled,
        in the spare space."""
        if self.failure is None:
            try:
                granted = await self.call(self.ledger.commit, reservations, settlements)
            except StorageError as error:
                self.failure = error
                if self._spare is not None:
                    self._spare.release()
            else:
                return [*granted, *(None for _ in settlements)]
        settled: StorageError | None = None
        try:
            await self.call(self.ledger.commit, [], settlements)
        except StorageError as error:
            settled = error
        return [*(self.failure for _ in reservations), *(settled for _ in settlements)]

    async def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function of the ledger on its thread.

        Raises:
            StorageError: the ledger cannot be written.
        """

        def run() -> R:
            with storing(self.ledger.path):
                return function(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)
