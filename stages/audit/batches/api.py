# pyright: strict
"""What a provider's batch API must do, and which there are.

Creating a batch is not idempotent at any provider, so each says how a batch can be found again whose creation was not
seen to end.
"""

import contextlib
import importlib
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import aiohttp

from ....store.errors import ConfigError, TeacherError
from ....store.sections import TeacherConfig
from ..client import Outcome
from ..teacher import HttpRequest, Teacher


@dataclass(frozen=True)
class State:
    """How far a batch is.

    `ended`: each row has a result, or never will. `cancelled`: by someone, so not to be sent again; what was done
    before is there. `failed`: refused as a whole, and nothing was done.
    """

    kind: Literal["running", "ended", "cancelled", "failed"]
    reason: str = ""
    answers: int | None = None
    """Requests that the provider says were answered; None where it does not count them."""


@dataclass(frozen=True)
class Intent:
    """A batch that was about to be created."""

    key: str
    """Ours, made before the provider hears of the batch."""
    request_ids: Collection[str]
    newest_before: str
    """The newest batch that the provider listed before; "" where it listed none. Theirs and our clocks differ."""
    known: Collection[str]
    """Provider's ids of our other batches."""


class Unsure(Exception):
    """No answer came, so nobody knows whether the provider did what it was asked for."""


class NotYet(Exception):
    """Whether a batch is ours shows once it has ended."""


class Refused(Exception):
    """The provider said no, or could not be reached (status 0): it has done nothing."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status}: {reason}" if status else reason)
        self.status = status

    @property
    def passing(self) -> bool:
        """Whether the same may work a little later."""
        return self.status in (0, 409, 425, 429) or self.status >= 500


class Batches(Protocol):
    """One provider's batch API, for one teacher. All may raise Unsure and Refused."""

    most_rows: int
    most_bytes: int
    """Limits of a batch: a little below the provider's, for what is around the rows."""

    def row(self, request_id: str, request: HttpRequest) -> bytes:
        """A request as it stands in the batch."""
        ...

    async def newest(self) -> str:
        """The provider's id of its newest batch; "" where it has none, or where `find` needs no such thing."""
        ...

    async def prepare(self, key: str, rows: Sequence[bytes]) -> str:
        """What comes before the creation and costs nothing. Returns what `create` needs."""
        ...

    async def create(self, key: str, prepared: str, rows: Sequence[bytes]) -> str:
        """Start the batch: from here on it costs money. Returns the provider's id."""
        ...

    async def find(self, intent: Intent) -> str | None:
        """The provider's id of a batch whose creation was not seen to end; None: it is not there. May raise NotYet."""
        ...

    async def state(self, remote_id: str) -> State: ...

    def results(self, remote_id: str) -> AsyncIterator[tuple[str, Outcome]]:
        """Request ids and what became of them, in any order; without what cannot be read."""
        ...

    async def cancel(self, remote_id: str) -> None:
        """Ask for no more of a batch; what was answered by then is billed, and can be fetched."""
        ...

    async def close(self) -> None:
        """Let go of connections of its own."""
        ...


class MakeBatches(Protocol):
    """`open` of a provider's module."""

    def __call__(self, config: TeacherConfig, teacher: Teacher, session: aiohttp.ClientSession) -> Batches: ...


BUILT_IN = {"openai": ".openai", "anthropic": ".anthropic", "gemini": ".gemini"}
"""Module of each kind of teacher that has a batch API."""


@contextlib.asynccontextmanager
async def open_batches(
    config: TeacherConfig, teacher: Teacher, session: aiohttp.ClientSession
) -> AsyncGenerator[Batches]:
    """The batch API of the configured teacher.

    Raises:
        ConfigError: it has none, or several servers were given.
        TeacherError: a package is missing.
    """
    if config.kind not in BUILT_IN:
        raise ConfigError(f"teacher.kind {config.kind!r} has no batch API.", 'Set teacher.mode = "live".')
    if len(teacher.base_urls) > 1:
        raise ConfigError("A batch goes to one server.", "Give one teacher.base_url, or set teacher.mode to live.")
    module = importlib.import_module(BUILT_IN[config.kind], __package__)
    batches = cast("MakeBatches", module.open_)(config, teacher, session)
    try:
        yield batches
    finally:
        await batches.close()


def no_batches(url: str) -> TeacherError:
    return TeacherError(f"The server at {url} has no batch API.", 'Set teacher.mode = "live".')
