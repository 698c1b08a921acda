# pyright: strict
"""Gemini's batch mode, with the requests in the call itself.

https://ai.google.dev/gemini-api/docs/batch-api
https://ai.google.dev/api/batch-api
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, cast

import aiohttp
import orjson

from ....store.sections import TeacherConfig
from ..client import Outcome
from ..teacher import HttpRequest, Teacher
from .api import Intent, State, Unsure
from .http import ask

_STATES = {
    "SUCCEEDED": "ended", "PARTIALLY_SUCCEEDED": "ended", "EXPIRED": "ended", "CANCELLED": "cancelled",
    "FAILED": "failed",
}  # fmt: skip


def open_(config: TeacherConfig, teacher: Teacher, session: aiohttp.ClientSession) -> "GeminiBatches":
    """See `MakeBatches`."""
    return GeminiBatches(teacher.base_urls[0], config.model, session)


class GeminiBatches:
    """One POST holds all requests; the batch's display name is our key."""

    most_rows = 20_000
    most_bytes = 19 * 1000 * 1000
    """Requests in the call itself may be 20 MB."""

    def __init__(self, url: str, model: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._model = model
        self._session = session

    def row(self, request_id: str, request: HttpRequest) -> bytes:
        return orjson.dumps({"request": request.body, "metadata": {"key": request_id}})

    async def newest(self) -> str:
        return ""

    async def prepare(self, key: str, rows: Sequence[bytes]) -> str:
        return ""

    async def create(self, key: str, prepared: str, rows: Sequence[bytes]) -> str:
        body = b'{"batch":{"displayName":"%s","inputConfig":{"requests":{"requests":[%s]}}}}'
        url = f"{self._url}/models/{self._model}:batchGenerateContent"
        return str((await ask(self._session, "POST", url, body % (key.encode(), b",".join(rows))))["name"])

    async def find(self, intent: Intent) -> str | None:
        token = ""
        while True:
            page = await ask(self._session, "GET", f"{self._url}/batches?pageSize=100{token}")
            for batch in cast("list[dict[str, Any]]", page.get("operations") or []):
                if _metadata(batch).get("displayName") == intent.key:
                    return str(batch["name"])
            if not page.get("nextPageToken"):
                return None
            token = f"&pageToken={page['nextPageToken']}"

    async def state(self, remote_id: str) -> State:
        batch = await ask(self._session, "GET", f"{self._url}/{remote_id}")
        # BATCH_STATE_SUCCEEDED, and JOB_STATE_SUCCEEDED in earlier answers.
        name = str(_metadata(batch).get("state", "")).rpartition("STATE_")[2]
        reason = cast("dict[str, Any]", batch.get("error") or {}).get("message", "")
        stats = cast("dict[str, Any]", _metadata(batch).get("batchStats") or {})
        # 64-bit integers are strings in Google's JSON.
        answers = int(stats["successfulRequestCount"]) if "successfulRequestCount" in stats else None
        return State(_STATES.get(name, "running"), str(reason), answers)  # pyright: ignore[reportArgumentType]

    async def results(self, remote_id: str) -> AsyncIterator[tuple[str, Outcome]]:
        batch = await ask(self._session, "GET", f"{self._url}/{remote_id}")
        response = cast("dict[str, Any]", batch.get("response") or {})
        inlined = cast("dict[str, Any]", response.get("inlinedResponses") or {})
        for one in cast("list[dict[str, Any]]", inlined.get("inlinedResponses") or []):
            try:
                result = str(one["metadata"]["key"]), _outcome(one)
            except (KeyError, TypeError, AttributeError):
                continue  # counted by what is missing in the end
            yield result

    async def cancel(self, remote_id: str) -> None:
        await ask(self._session, "POST", f"{self._url}/{remote_id}:cancel")

    async def close(self) -> None:
        """The session is the stage's."""


def _metadata(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    metadata = batch.get("metadata")
    if not isinstance(metadata, dict):
        raise Unsure("a batch without metadata")
    return cast("dict[str, Any]", metadata)


_HTTP_STATUS = {3: 400, 5: 404, 7: 403, 8: 429, 9: 400, 11: 400, 16: 401}
"""Of gRPC's codes, by which an error names its kind; others are the server's fault."""


def _outcome(one: Mapping[str, Any]) -> Outcome:
    if "response" in one:
        return Outcome("answered", body=one["response"], status=200)
    error = cast("dict[str, Any]", one.get("error") or {})
    status = _HTTP_STATUS.get(int(error.get("code") or 0), 500)
    return Outcome("refused", error, status, str(error.get("message", "")))
