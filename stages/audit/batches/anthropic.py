# pyright: strict
"""Anthropic's Message Batches.

https://docs.anthropic.com/en/api/creating-message-batches
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import aiohttp
import orjson

from ....store.sections import TeacherConfig
from ..client import Outcome
from ..teacher import HttpRequest, Teacher
from .api import Intent, NotYet, State
from .http import ask, lines


def open_(config: TeacherConfig, teacher: Teacher, session: aiohttp.ClientSession) -> "AnthropicBatches":
    """See `MakeBatches`."""
    return AnthropicBatches(teacher.base_urls[0] + "/messages/batches", session)


class AnthropicBatches:
    """One POST holds all requests. A batch has no name of ours, but its results have."""

    most_rows = 100_000
    most_bytes = 255_000_000
    """Of 256 MB."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    def row(self, request_id: str, request: HttpRequest) -> bytes:
        return orjson.dumps({"custom_id": request_id, "params": request.body})

    async def newest(self) -> str:
        page = await ask(self._session, "GET", f"{self._url}?limit=1")
        batches = cast("list[dict[str, Any]]", page["data"])
        return str(batches[0]["id"]) if batches else ""

    async def prepare(self, key: str, rows: Sequence[bytes]) -> str:
        return ""

    async def create(self, key: str, prepared: str, rows: Sequence[bytes]) -> str:
        body = b'{"requests":[' + b",".join(rows) + b"]}"
        return str((await ask(self._session, "POST", self._url, body))["id"])

    async def find(self, intent: Intent) -> str | None:
        """Batches of that size are opened once they have ended: the ids in it are ours, or are not."""
        running = False
        for remote_id in await self._listed(intent):
            if (await self.state(remote_id)).kind == "running":
                running = True
                continue
            async for request_id, _ in self.results(remote_id):
                if request_id in intent.request_ids:
                    return remote_id
                break
        if running:
            raise NotYet
        return None

    async def _listed(self, intent: Intent) -> list[str]:
        """Newer batches of the same size that are none of our others, newest first."""
        found: list[str] = []
        after = ""
        while True:
            page = await ask(self._session, "GET", f"{self._url}?limit=100{after}")
            for batch in cast("list[dict[str, Any]]", page["data"]):
                if batch["id"] == intent.newest_before:
                    return found  # the newest come first
                size = sum(cast("dict[str, int]", batch["request_counts"]).values())
                if batch["id"] not in intent.known and size == len(intent.request_ids):
                    found.append(str(batch["id"]))
            if not page.get("has_more"):
                return found
            after = f"&after_id={page['last_id']}"

    async def state(self, remote_id: str) -> State:
        batch = await ask(self._session, "GET", f"{self._url}/{remote_id}")
        if batch["processing_status"] != "ended":
            return State("running")
        answers = cast("dict[str, int]", batch["request_counts"])["succeeded"]
        return State("cancelled" if batch.get("cancel_initiated_at") else "ended", answers=answers)

    async def results(self, remote_id: str) -> AsyncIterator[tuple[str, Outcome]]:
        # Not at the `results_url` of the answer, which could lead the key elsewhere.
        async for line in lines(self._session, f"{self._url}/{remote_id}/results"):
            try:
                result = str(line["custom_id"]), _outcome(line["result"])
            except (KeyError, TypeError, AttributeError):
                continue  # counted by what is missing in the end
            yield result

    async def cancel(self, remote_id: str) -> None:
        await ask(self._session, "POST", f"{self._url}/{remote_id}/cancel")

    async def close(self) -> None:
        """The session is the stage's."""


def _outcome(result: Mapping[str, Any]) -> Outcome:
    if result["type"] == "succeeded":
        return Outcome("answered", body=result["message"], status=200)
    if result["type"] == "errored":
        error = cast("dict[str, Any]", result.get("error") or {})
        inner = cast("dict[str, Any]", error.get("error") or error)
        invalid = inner.get("type") == "invalid_request_error"
        return Outcome("refused", error, 400 if invalid else 500, str(inner.get("message", inner)))
    return Outcome("unsent", reason=str(result["type"]))  # canceled or expired: not billed
