"""OpenAI's Batch API, through the `openai` SDK (extra: batch).

https://platform.openai.com/docs/guides/batch
https://platform.openai.com/docs/api-reference/batch
"""

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import aiohttp
import orjson

from ....store.errors import TeacherError
from ....store.sections import TeacherConfig
from ..client import OUTCOME_UNKNOWN, Outcome, without_secrets
from ..teacher import HttpRequest, Teacher
from ..teachers.common import api_key
from ..teachers.openai import KEY
from .api import Intent, Refused, State, Unsure, no_batches
from .http import read_line

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_TAG = "omniopd"
"""The batch's metadata key that holds our key."""

_STATES = {"completed": "ended", "expired": "ended", "cancelled": "cancelled", "failed": "failed"}


def open_(config: TeacherConfig, teacher: Teacher, session: aiohttp.ClientSession) -> "OpenAIBatches":
    """See `MakeBatches`. The SDK brings its own connections."""
    try:
        import openai
    except ModuleNotFoundError as error:
        raise TeacherError(
            'teacher.mode = "batch" needs the openai package.', "Install it: pip install 'omniopd[batch]'."
        ) from error
    client = openai.AsyncOpenAI(
        api_key=api_key(config, KEY) or "none",
        base_url=teacher.base_urls[0],
        # Repeating is ours to decide: the SDK would create a second batch.
        max_retries=0,
        # A redirect would carry the key elsewhere.
        http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
    )
    return OpenAIBatches(client, teacher)


class OpenAIBatches:
    """A file of requests, then a batch of that file; what failed is in a second file."""

    most_rows = 50_000
    most_bytes = 199_000_000
    """Of 200 MB."""

    def __init__(self, client: "AsyncOpenAI", teacher: Teacher) -> None:
        self._client = client
        self._headers = teacher.headers
        self._teacher = teacher

    @property
    def _endpoint(self) -> Any:
        return "/v1/completions" if self._teacher.continuation == "completion" else "/v1/chat/completions"

    def row(self, request_id: str, request: HttpRequest) -> bytes:
        line = {"custom_id": request_id, "method": "POST", "url": self._endpoint, "body": request.body}
        return orjson.dumps(line)

    async def newest(self) -> str:
        page = await self._ask(self._client.batches.list(limit=1))
        return page.data[0].id if page.data else ""

    async def prepare(self, key: str, rows: Sequence[bytes]) -> str:
        content = b"".join(row + b"\n" for row in rows)
        file = await self._ask(self._client.files.create(file=(f"{key}.jsonl", content), purpose="batch"))
        return file.id

    async def create(self, key: str, prepared: str, rows: Sequence[bytes]) -> str:
        created = await self._ask(
            self._client.batches.create(
                input_file_id=prepared, endpoint=self._endpoint, completion_window="24h", metadata={_TAG: key}
            )
        )
        return created.id

    async def find(self, intent: Intent) -> str | None:
        page = await self._ask(self._client.batches.list(limit=100))
        while True:
            for batch in page.data:
                if (batch.metadata or {}).get(_TAG) == intent.key:
                    return batch.id
                if batch.id == intent.newest_before:  # the newest come first
                    return None
            if not page.has_next_page():
                return None
            page = await self._ask(page.get_next_page())

    async def state(self, remote_id: str) -> State:
        batch = await self._ask(self._client.batches.retrieve(remote_id))
        errors = batch.errors.data if batch.errors and batch.errors.data else []
        reason = "; ".join(error.message or "" for error in errors[:3])
        answers = batch.request_counts.completed if batch.request_counts else None
        return State(_STATES.get(batch.status, "running"), reason, answers)  # pyright: ignore[reportArgumentType]

    async def results(self, remote_id: str) -> AsyncIterator[tuple[str, Outcome]]:
        batch = await self._ask(self._client.batches.retrieve(remote_id))
        for file in (batch.output_file_id, batch.error_file_id):
            if file:
                content = await self._ask(self._client.files.content(file))
                for line in content.read().split(b"\n"):
                    try:
                        result = _result(read_line(line) or {})
                    except (KeyError, TypeError, AttributeError):
                        continue  # counted by what is missing in the end
                    yield result

    async def cancel(self, remote_id: str) -> None:
        await self._ask(self._client.batches.cancel(remote_id))

    async def close(self) -> None:
        await self._client.close()

    async def _ask(self, call: Any) -> Any:
        import openai

        try:
            return await call
        except openai.APIStatusError as error:
            if error.status_code == 404 and "batches" in str(error.request.url):
                raise no_batches(str(self._client.base_url)) from error
            said = without_secrets(error.message, self._headers)
            if error.status_code in OUTCOME_UNKNOWN:
                raise Unsure(f"{error.status_code}: {said}") from error
            raise Refused(error.status_code, said) from error
        except openai.APIConnectionError as error:
            reason = f"{type(error).__name__}: {error}"
            if type(error.__cause__).__name__ == "ConnectError":  # httpx, or what follows it
                raise Refused(0, reason) from error
            raise Unsure(reason) from error
        except openai.OpenAIError as error:
            raise Unsure(f"{type(error).__name__}: {error}") from error


def _result(line: dict[str, Any]) -> tuple[str, Outcome]:
    request_id, response, error = str(line["custom_id"]), line.get("response"), line.get("error")
    if response and response.get("status_code") == 200:
        return request_id, Outcome("answered", body=response.get("body"), status=200)
    if response and response.get("status_code"):
        body = response.get("body") or {}
        message = (body.get("error") or {}).get("message", "")
        return request_id, Outcome("refused", body, response["status_code"], message)
    reason = (error or {}).get("code") or (error or {}).get("message") or "no answer"
    # Neither expired nor cancelled rows are billed.
    return request_id, Outcome("unsent", reason=str(reason))
