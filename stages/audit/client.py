"""Sending requests: one attempt, its outcome, and when to try again."""

import asyncio
import base64
import functools
import random
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from errno import EMFILE, ENFILE
from typing import Any, Literal
from urllib.parse import quote, quote_plus, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import orjson

from ...store.errors import TeacherError, without_credentials
from ...store.sections import TeacherConfig
from .json_body import read_json
from .teacher import HttpRequest, Reply, Teacher
from .teachers.registry import find_dialect

_LARGEST_ANSWER = 4 << 20
_LONGEST_WAIT_S = 60.0
_NO_TIMEOUT = aiohttp.ClientTimeout()

OUTCOME_UNKNOWN = frozenset({408, 502, 504, 520, 524})
"""What a gateway says when the server behind it took the request and brought no answer in time, or none that it could
read: the work may have been done and billed. Other 5xx are free. 500 is the server's own word that it failed, for which
no provider bills; 503, 529, 521, 522, 523, 525 and 526 mean that nobody took the request."""

_ACCOUNT_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error", "account_deactivated",
     "insufficient_balance", "credit_balance_too_low"}
)  # fmt: skip
"""`error.code` or `error.type` of OpenAI, Anthropic and those who speak like them."""
_ACCOUNT_WORDS = re.compile(
    r"credit balance|insufficient (balance|credits?|funds|quota)|billing hard limit"
    r"|account\b.{0,40}\b(deactivated|suspended|disabled)",
    re.IGNORECASE,
)
"""Not "exceeded your current quota" alone: Gemini says so of a limit of one minute too."""


class NobodyAnswers(TeacherError):
    """No server is at the address, or none that can be reached."""


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt.

    `answered`: a 200 with JSON. `unsent` (no connection) and `refused` (the server said no) are not billed.
    `unknown`: no whole answer came, or a gateway spoke for the server, which may have done the work.
    """

    kind: Literal["answered", "unsent", "refused", "unknown"]
    body: Any = None
    """The answer's JSON; of a refusal its JSON, or its text where it has none."""
    status: int = 0
    reason: str = ""
    retry_after_s: float | None = None
    timed_out: bool = False
    """Whether no whole answer came within teacher.timeout_s."""
    out_of_files: bool = False
    """Whether this process could open no connection because it has too many files open."""

    @property
    def problem(self) -> str:
        return f"{self.status or self.kind}: {self.reason}"

    @property
    def known(self) -> bool:
        """Whether the server is known not to have done the work."""
        return self.kind in ("unsent", "refused")

    @property
    def about_account(self) -> bool:
        """Whether the account or its balance is refused, whatever is asked."""
        return self.status == 402 or (self.kind == "refused" and _speaks_of_account(self.body))

    @property
    def from_elsewhere(self) -> bool:
        """Whether this comes from no teacher at all: a redirect, or a status that no API has for an answer."""
        return self.kind == "refused" and self.status < 400

    @property
    def throttled(self) -> bool:
        return self.status in (429, 529) and not self.about_account

    @property
    def worth_retrying(self) -> bool:
        if self.about_account or self.from_elsewhere or self.out_of_files:
            return False
        return self.kind in ("unsent", "unknown") or self.status in (408, 409, 425, 429) or self.status >= 500


def open_session(config: TeacherConfig, headers: Mapping[str, str]) -> aiohttp.ClientSession:
    """One pool of connections for a stage."""
    return aiohttp.ClientSession(
        headers={"Content-Type": "application/json", **headers},
        cookie_jar=aiohttp.DummyCookieJar(),
        # Made here and not by aiohttp, which does it when it is imported: SSL_CERT_FILE holds as of now.
        connector=aiohttp.TCPConnector(limit=config.max_concurrency, ssl=ssl.create_default_context()),
        timeout=aiohttp.ClientTimeout(total=config.timeout_s),
    )


@functools.cache
def proxy_of(base_url: str) -> str | None:
    """The environment's proxy for a server. Looked up once: aiohttp's own `trust_env` asks two threads before each
    request, which costs as much as the request, and would send passwords of a .netrc."""
    parts = urlsplit(base_url)
    return None if proxy_bypass(parts.netloc) else getproxies().get(parts.scheme)


async def post(session: aiohttp.ClientSession, base_url: str, request: HttpRequest) -> Outcome:
    """One attempt. Redirects are not followed: they would carry the key elsewhere."""
    try:
        # One deadline for all of it: aiohttp's own would look at the clock at each step.
        async with asyncio.timeout(session.timeout.total), session.post(
            base_url + request.path, data=orjson.dumps(request.body), allow_redirects=False, proxy=proxy_of(base_url),
            timeout=_NO_TIMEOUT,
        ) as response:  # fmt: skip
            raw = await _read(response)
            status, headers = response.status, response.headers
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        kind = "unsent" if isinstance(error, aiohttp.ClientConnectorError) else "unknown"
        late = isinstance(error, TimeoutError)
        said = f"no answer in {session.timeout.total:g} s" if late else f"{type(error).__name__}: {error}".rstrip(": ")
        reason = without_secrets(said, session.headers)
        no_files = getattr(error, "errno", None) in (EMFILE, ENFILE)
        return Outcome(kind, reason=reason, timed_out=late, out_of_files=no_files)
    if status != 200:
        return _not_answered(status, raw, headers, _sent_secrets(session.headers, base_url))
    try:
        body = read_json(raw)
    except ValueError as error:
        return Outcome("unknown", status=status, reason=f"the answer is not JSON: {error}")
    if (meant := _status_in_answer(body)) is not None:
        return _not_answered(meant, raw, headers, _sent_secrets(session.headers, base_url))
    return Outcome("answered", body=body, status=status)


def _not_answered(status: int, raw: bytes, headers: Mapping[str, str], sent: Mapping[str, str]) -> Outcome:
    """The outcome of a status that is no success. `sent`: what the request held that nobody may read."""
    kind = "unknown" if status in OUTCOME_UNKNOWN else "refused"
    if status < 400:
        host = urlsplit(headers.get("Location", "")).hostname
        reason = f"it redirects to {host or 'another address'}" if 300 <= status != 304 else "it sends no answer"
    else:
        reason = without_secrets(error_message(raw), sent)
    return Outcome(kind, error_body(raw), status, reason, retry_after_s(headers))


def _status_in_answer(body: Any) -> int | None:
    """The status that a 200 should have had whose body is an error and nothing else: its code, where that is a status.
    Else 500: the server says that it failed."""
    if not isinstance(body, dict) or not body.get("error") or _ANSWERS.intersection(body):
        return None
    error = body["error"]
    code = error.get("code", error.get("status")) if isinstance(error, dict) else None
    status = int(code) if isinstance(code, int | str) and str(code).isdigit() else 0
    return status if 400 <= status < 600 else 500


_ANSWERS = frozenset({"choices", "content", "candidates"})
"""Where the dialects' answers have their texts."""


def _speaks_of_account(body: Any) -> bool:
    if isinstance(body, str):
        return _ACCOUNT_WORDS.search(body) is not None
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return isinstance(error, str) and _ACCOUNT_WORDS.search(error) is not None
    codes = {error.get(name) for name in ("code", "type") if isinstance(error.get(name), str)}
    return not codes.isdisjoint(_ACCOUNT_CODES) or _ACCOUNT_WORDS.search(str(error.get("message", ""))) is not None


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


def pause_s(attempt: int, asked_s: float | None) -> float:
    """Seconds before the next attempt: what the server asked for, else doubling from half a second, with jitter."""
    if asked_s is not None:
        return min(asked_s, _LONGEST_WAIT_S)
    return min(0.5 * 2 ** (attempt - 1), _LONGEST_WAIT_S) * random.uniform(0.5, 1.0)


async def find_teacher(config: TeacherConfig) -> Teacher:
    """Check, without spending a token, that the teacher is there, and choose how it continues a prefix.

    Raises:
        ConfigError: there is no such kind of teacher.
        TeacherError: as `Find` says.
    """
    dialect = find_dialect(config.kind)
    async with open_session(config, {}) as session:
        return await dialect.find(config, _SessionHttp(session))


async def get_json(config: TeacherConfig, url: str, headers: Mapping[str, str]) -> Reply:
    """What a server says to a GET that costs nothing.

    Raises:
        TeacherError: nobody answers.
    """
    async with open_session(config, {}) as session:
        return await _SessionHttp(session).get(url, headers)


class _SessionHttp:
    """`Http` over one session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def get(self, url: str, headers: Mapping[str, str]) -> Reply:
        return await self._ask("GET", url, headers, None)

    async def post(self, url: str, headers: Mapping[str, str], body: Mapping[str, Any]) -> Reply:
        return await self._ask("POST", url, headers, orjson.dumps(body))

    async def _ask(self, method: str, url: str, headers: Mapping[str, str], data: bytes | None) -> Reply:
        if urlsplit(url).password is not None and "Authorization" in headers:
            raise TeacherError(
                f"{url} holds a password, and there is a key too: both go into the same header.",
                "Take the password out of teacher.base_url, or unset the key.",
            )
        try:
            try:
                status, raw = await self._once(method, url, headers, data)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                # A kept connection that the server had closed. Nothing is asked for here, so twice is harmless.
                status, raw = await self._once(method, url, headers, data)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
            raise TeacherError(
                f"The certificate of {url.split('/models')[0]} is not to be trusted ({error.strerror or error}).",
                "Name the file of its certificate authority in the environment variable SSL_CERT_FILE.",
            ) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NobodyAnswers(
                f"No teacher answers at {url.split('/models')[0]} ({type(error).__name__}).",
                "Start the server or set teacher.base_url.",
            ) from error
        try:
            return Reply(status, orjson.loads(raw))
        except orjson.JSONDecodeError:
            return Reply(status, None)

    async def _once(self, method: str, url: str, headers: Mapping[str, str], data: bytes | None) -> tuple[int, bytes]:
        async with self._session.request(
            method, url, headers=headers, data=data, allow_redirects=False, proxy=proxy_of(url)
        ) as response:
            return response.status, await _read(response)


_LONGEST_REASON = 200


def without_secrets(text: str, headers: Mapping[str, str]) -> str:
    """The beginning of what a server said, redacted; shortened last, or the end of the text could be half a key."""
    return redacted(text, headers)[:_LONGEST_REASON]


def redacted(text: str, headers: Mapping[str, str]) -> str:
    """What a server said, without the words of the session's headers: some repeat the key that they refuse, as it is,
    in a URL, or in base64."""
    secrets = {word for word in " ".join(headers.values()).split() if len(word) >= 8}
    # The longest first: one may hold another.
    for form in sorted({form for word in secrets for form in _written_forms(word)}, key=len, reverse=True):
        text = text.replace(form, "(key)")
    return without_credentials(text)


def _sent_secrets(headers: Mapping[str, str], base_url: str) -> Mapping[str, str]:
    """The headers of a request, with those that aiohttp makes of a user and password in the URL."""
    parts = urlsplit(base_url)
    if parts.password is None:
        return headers
    user, password = unquote(parts.username or ""), unquote(parts.password)
    return {**headers, "password": password, "basic": base64.b64encode(f"{user}:{password}".encode()).decode()}


@functools.cache
def _written_forms(word: str) -> tuple[str, ...]:
    """A word and its encodings. Base64 of a longer text holds the word at one of three offsets, with
    what the neighbors do not touch."""
    raw = word.encode()
    forms = {word, quote(word, safe=""), quote_plus(word)}
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        forms.add(encode(raw).decode())
        for before in range(3):
            begin, end = -(-before * 8 // 6), (before + len(raw)) * 8 // 6
            forms.add(encode(b"\0" * before + raw).decode()[begin:end])
    return tuple(form for form in forms if len(form) >= 8)


def error_body(raw: bytes) -> Any:
    """What a server said to a request that it refuses: JSON, or text."""
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw.decode(errors="replace")


def error_message(raw: bytes) -> str:
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return raw.decode(errors="replace")
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)


_RESET = re.compile(r"(x-ratelimit-reset-[a-z]+|anthropic-ratelimit-[a-z-]+-reset)$", re.IGNORECASE)
_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds for which the server wants to be left alone: Retry-After, else until its limits are reset."""
    given = headers.get("Retry-After", "")
    if given.replace(".", "", 1).isdecimal():
        return min(float(given), _LONGEST_WAIT_S)
    milliseconds = headers.get("retry-after-ms", "")
    if milliseconds.isdecimal():
        return min(float(milliseconds) / 1000, _LONGEST_WAIT_S)
    resets = [_from_now(value) for name, value in headers.items() if _RESET.match(name)]
    known = [wait for wait in (_http_date(given), *resets) if wait is not None]
    return min(max(known), _LONGEST_WAIT_S) if known else None


def _from_now(value: str) -> float | None:
    """A duration as OpenAI writes it (`6m0s`), or a time as Anthropic does (RFC 3339)."""
    if (match := _DURATION.fullmatch(value)) and value:
        hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
        return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
    try:
        return max(0.0, datetime.fromisoformat(value).timestamp() - time.time())
    except ValueError:
        return None


def _http_date(value: str) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
