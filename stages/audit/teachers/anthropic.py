# pyright: strict
"""Anthropic's Messages API.

https://docs.anthropic.com/en/api/messages
https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
"""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

from ....store.ledger import Usage
from ....store.sections import TeacherConfig
from ..teacher import Answer, Ask, Continuation, Dialect, Http, HttpRequest, Rollout
from .common import (
    CONTINUE,
    api_key,
    base_urls,
    cannot,
    count,
    key_refused,
    listing,
    mapping,
    no_model,
    open_end,
    prompt_bytes,
    rollout,
    text_or_none,
)  # fmt: skip

_DEFAULT_URL = "https://api.anthropic.com/v1"
_KEY = "ANTHROPIC_API_KEY"
_VERSION = "2023-06-01"

_PREFILLS = re.compile(r"claude-3|claude-(opus|sonnet|haiku)-4(-[0-5])?(-\d{8}|-latest)?$")
"""Models that continue a trailing assistant turn; later ones answer it with 400."""

_MOST_CHOICES = 1
"""The API has no `n`."""

_LOOKBACK = 18
"""Blocks before a cache breakpoint in which the API looks for an earlier entry: 20, of which the question is one."""


async def find(config: TeacherConfig, http: Http) -> "AnthropicTeacher":
    """See `Find`."""
    if config.continuation == "completion":
        raise cannot("anthropic", "complete raw text", "Set teacher.continuation to prefill, instruct or auto.")
    if config.temperature > 1:
        raise cannot("anthropic", "sample above temperature 1", "Lower teacher.temperature.")
    teacher = AnthropicTeacher(config)
    for url in teacher.base_urls:
        reply = await http.get(f"{url}/models/{config.model}", teacher.headers)
        if reply.status in (401, 403):
            raise key_refused(url, reply.status, _KEY)
        # A gateway that lacks this endpoint says 404 too, but not in these words.
        if reply.status == 404 and _error_type(reply.body) == "not_found_error":
            raise no_model(url, config.model)
    return teacher


def _error_type(body: Any) -> Any:
    error = cast("dict[str, Any]", body).get("error") if isinstance(body, dict) else None
    return cast("dict[str, Any]", error).get("type") if isinstance(error, dict) else None


class AnthropicTeacher:
    """`/messages` with the student's prefix as an open assistant turn, or with an instruction to continue it."""

    most_choices: int | None = _MOST_CHOICES
    caches_after_first = True

    def __init__(self, config: TeacherConfig) -> None:
        key = api_key(config, _KEY)
        self.headers: Mapping[str, str] = {"anthropic-version": _VERSION} | ({"x-api-key": key} if key else {})
        self.base_urls = base_urls(config, _DEFAULT_URL)
        self.continuation: Continuation
        if config.continuation == "auto":
            prefills = _PREFILLS.match(config.model) is not None
            self.continuation = "prefill" if prefills else "instruct"
            self.why = f"{config.model} {'takes' if prefills else 'is not known to take'} an open assistant turn"
        else:
            self.continuation = "instruct" if config.continuation == "instruct" else "prefill"
            self.why = "as configured"
        self._model = config.model
        self._temperature = config.temperature

    def request(self, ask: Ask) -> HttpRequest:
        shown, _ = open_end(ask.prefix)
        messages: list[dict[str, Any]] = [{"role": "user", "content": [_block(ask.question)]}]
        if shown:
            messages.append({"role": "assistant", "content": [_block(text) for text in _pieces(shown, ask.cuts)]})
        # One breakpoint, at the end of what the requests for this chunk and those for the later ones have in common.
        messages[-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}
        if shown and self.continuation == "instruct":
            messages.append({"role": "user", "content": [_block(CONTINUE)]})
        body = {"model": self._model, "max_tokens": ask.max_tokens, "temperature": self._temperature}
        return HttpRequest("/messages", body | {"messages": messages})

    def parse(self, body: Any, ask: Ask) -> Answer:
        answer = mapping(body)
        if answer.get("type") != "message":
            raise ValueError("the answer is not a message")
        stop = text_or_none(answer.get("stop_reason"))
        blocks = [mapping(block) for block in listing(answer.get("content"))]
        texts = [block.get("text") for block in blocks if block.get("type") == "text"]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("a text block has no text")
        if stop == "refusal":
            one = Rollout("refused", None, stop)
        else:
            one = rollout("".join(cast("list[str]", texts)), stop, open_end(ask.prefix)[1])
        usage = answer.get("usage")
        return Answer(str(answer.get("model", "")), [one], None if usage is None else _usage(mapping(usage)))

    def worst_case(self, ask: Ask) -> Usage:
        tokens = prompt_bytes(ask, self.continuation)
        return Usage(tokens, 0, ask.max_tokens, cache_write_tokens=tokens)


def _pieces(shown: str, cuts: tuple[int, ...]) -> list[str]:
    """The prefix as blocks that end where the earlier chunks' prefixes did: an entry of the cache is found only at the
    end of a block."""
    ends = sorted({len(shown[:cut].rstrip()) for cut in cuts} - {0, len(shown)})[-_LOOKBACK:]
    # The API refuses a block of whitespace; between two ends that are both after a letter there is none.
    return [shown[start:end] for start, end in pairwise([0, *ends, len(shown)])]


def _block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _usage(usage: Mapping[str, Any]) -> Usage:
    read, written = count(usage, "cache_read_input_tokens"), count(usage, "cache_creation_input_tokens")
    prompt = count(usage, "input_tokens") + read + written
    return Usage(prompt, read, count(usage, "output_tokens"), cache_write_tokens=written)


def _most_choices(model: str) -> int | None:
    return _MOST_CHOICES


DIALECT = Dialect(find, continuations=("prefill", "instruct"), most_choices=_most_choices, price_provider="anthropic")
