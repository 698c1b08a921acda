"""Sending requests: one attempt, its outcome, and when to try again."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import orjson

from ...store.config import TeacherConfig
from ...store.errors import TeacherError
from .openai_teacher import OpenAITeacher, auth_headers
from .teacher import HttpRequest, Teacher

_LARGEST_ANSWER = 16 << 20
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt.

    `answered`: a 200 with JSON. `unsent` (no connection) and `refused` (the server said no) are not billed.
    `unknown`: no whole answer came, and the server may have done the work.
    """

    kind: Literal["answered", "unsent", "refused", "unknown"]
    body: Any = None
    status: int = 0
    reason: str = ""
    retry_after_s: float | None = None

    @property
    def problem(self) -> str:
        return f"{self.status or self.kind}: {self.reason}"

    @property
    def worth_retrying(self) -> bool:
        return self.kind in ("unsent", "unknown") or self.status in (408, 409, 425, 429) or self.status >= 500


def open_session(config: TeacherConfig, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """One pool of connections for a stage. Proxies come from the environment."""
    return aiohttp.ClientSession(
        headers=headers,
        connector=aiohttp.TCPConnector(limit=config.max_concurrency),
        timeout=aiohttp.ClientTimeout(total=config.timeout_s),
        trust_env=True,
    )


async def post(session: aiohttp.ClientSession, base_url: str, request: HttpRequest) -> Outcome:
    """One attempt. Redirects are not followed: they would carry the key elsewhere."""
    try:
        async with session.post(
            base_url + request.path, data=orjson.dumps(request.body), allow_redirects=False,
            headers={"Content-Type": "application/json"},
        ) as response:  # fmt: skip
            raw = await _read(response)
            status, retry_after_s = response.status, _seconds(response.headers.get("Retry-After"))
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        kind = "unsent" if isinstance(error, aiohttp.ClientConnectorError) else "unknown"
        return Outcome(kind, reason=f"{type(error).__name__}: {error}".rstrip(": "))
    if status != 200:
        return Outcome("refused", status=status, reason=_error_message(raw), retry_after_s=retry_after_s)
    try:
        return Outcome("answered", body=orjson.loads(raw), status=status)
    except orjson.JSONDecodeError as error:
        return Outcome("unknown", status=status, reason=f"the answer is not JSON: {error}")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body, up to the largest answer that any request here can have."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > _LARGEST_ANSWER:
            raise aiohttp.ClientPayloadError(f"the answer is larger than {_LARGEST_ANSWER} bytes")
    return b"".join(pieces)


def pause_s(attempt: int, retry_after_s: float | None) -> float:
    """Seconds before the next attempt: what the server asked for, else doubling from half a second, with jitter."""
    if retry_after_s is not None:
        return min(retry_after_s, _LONGEST_WAIT_S)
    return min(0.5 * 2 ** (attempt - 1), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)


async def find_teacher(config: TeacherConfig) -> Teacher:
    """Check, without spending a token, that the teacher is there, and choose how it continues a prefix.

    Raises:
        TeacherError: nobody answers at the base URL, the key is refused, or the server does not have the model.
    """
    base_url = config.base_url.rstrip("/")
    async with open_session(config, auth_headers(config)) as session:
        models = await _get_models(session, base_url)
        if models and config.model not in models:
            raise TeacherError(
                f"The server at {base_url} has no model {config.model!r} (it has {', '.join(sorted(models)[:5])}).",
                "Set teacher.model to one of its models.",
            )
        if config.continuation != "auto":
            return OpenAITeacher(config, config.continuation)
        # An empty request is refused by an endpoint that exists, and is not found on one that does not.
        probe = await post(session, base_url, HttpRequest("/completions", {}))
        return OpenAITeacher(config, "prefill" if probe.status in (404, 405) else "completion")


async def _get_models(session: aiohttp.ClientSession, base_url: str) -> set[str]:
    """Ids that the server lists; empty where it lists none."""
    try:
        async with session.get(base_url + "/models", allow_redirects=False) as response:
            if response.status in (401, 403):
                raise TeacherError(
                    f"The teacher at {base_url} refused the key ({response.status}).",
                    "Put a valid key into the environment variable that teacher.api_key_env names.",
                )
            if response.status != 200:
                return set()
            listing = orjson.loads(await response.read())
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise TeacherError(
            f"No teacher answers at {base_url} ({type(error).__name__}).", "Start the server or set teacher.base_url."
        ) from error
    except orjson.JSONDecodeError:
        return set()
    data = listing.get("data", []) if isinstance(listing, dict) else []
    return {str(model["id"]) for model in data if isinstance(model, dict) and "id" in model}


def _error_message(raw: bytes) -> str:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw[:200].decode(errors="replace")
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:200]


def _seconds(retry_after: str | None) -> float | None:
    return float(retry_after) if retry_after and retry_after.replace(".", "", 1).isdigit() else None
