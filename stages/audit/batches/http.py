# pyright: strict
"""JSON and JSON lines over the stage's session: what the batch APIs of Anthropic and Gemini need of HTTP."""

from collections.abc import AsyncIterator
from typing import Any, cast

import aiohttp

from ..client import OUTCOME_UNKNOWN, error_message, proxy_of, without_secrets
from ..json_body import read_json
from .api import Refused, Unsure

_MOST_BYTES = 1 << 30
_LONG = aiohttp.ClientTimeout(total=3600, sock_connect=60, sock_read=300)


async def ask(session: aiohttp.ClientSession, method: str, url: str, body: bytes | None = None) -> dict[str, Any]:
    """Send, and read a JSON object. Redirects are not followed.

    Raises:
        Unsure: no whole answer came, or a gateway's word that it saw none.
        Refused: another status than 200, or nobody is there.
    """
    raw = b"".join([piece async for piece in _pieces(session, method, url, body)])
    try:
        answer = read_json(raw)
    except ValueError as error:
        raise Unsure(f"the answer is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise Unsure("the answer is not a JSON object")
    return cast("dict[str, Any]", answer)


async def lines(session: aiohttp.ClientSession, url: str) -> AsyncIterator[dict[str, Any]]:
    """The JSON objects of a file of lines, one at a time, without the lines that are none.

    Raises:
        Unsure: it ended early.
        Refused: another status than 200.
    """
    rest = b""
    async for piece in _pieces(session, "GET", url, None):
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            if (value := read_line(line)) is not None:
                yield value
    if (value := read_line(rest)) is not None:
        yield value


def read_line(line: bytes) -> dict[str, Any] | None:
    """A line of a result file; None where it is no JSON object."""
    try:
        value = read_json(line)
    except ValueError:
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


async def _pieces(session: aiohttp.ClientSession, method: str, url: str, body: bytes | None) -> AsyncIterator[bytes]:
    size = 0
    try:
        async with session.request(
            method, url, data=body, allow_redirects=False, proxy=proxy_of(url), timeout=_LONG
        ) as response:  # fmt: skip
            if response.status in OUTCOME_UNKNOWN:
                raise Unsure(f"{response.status}: {await _said(session, response)}")
            if response.status != 200:
                raise Refused(response.status, await _said(session, response))
            async for piece in response.content.iter_any():
                size += len(piece)
                if size > _MOST_BYTES:
                    raise Unsure(f"the answer is larger than {_MOST_BYTES} bytes")
                yield piece
    except aiohttp.ClientConnectorError as error:
        raise Refused(0, f"nobody is there: {error}") from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unsure(f"{type(error).__name__}: {error}".rstrip(": ")) from error


async def _said(session: aiohttp.ClientSession, response: aiohttp.ClientResponse) -> str:
    return without_secrets(error_message(await response.content.read(1 << 16)), session.headers)
