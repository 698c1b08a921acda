# pyright: strict
"""Anthropic's Messages API.

https://docs.anthropic.com/en/api/messages
https://docs.anthropic.com/en/docs/build-with-claude/prompt-caching
"""

import json
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

from ....store.conversation import Conversation
from ....store.sections import TeacherConfig
from ....store.usage import Usage
from ..teacher import Answer, Ask, Dialect, Http, HttpRequest, Rollout
from .common import (
    api_key,
    base_urls,
    cannot,
    checked_extra,
    key_refused,
    merged,
    no_model,
    open_end,
    prefill_or_instruct,
    prompt_bytes,
    system_of,
)
from .refusal import NO_PREFILL, Adapting, Learned, words
from .reply import count, joined, listing, mapping, rollout, text_or_none, usage_or_none

_DEFAULT_URL = "https://api.anthropic.com/v1"
_KEY = "ANTHROPIC_API_KEY"
_VERSION = "2023-06-01"

_PREFILLS = re.compile(r"claude-3|claude-(opus|sonnet|haiku)-4(-[0-5])?(-\d{8}|-latest)?$")
"""Models that continue a trailing assistant turn; later ones answer it with 400."""

_MOST_CHOICES = 1
"""The API has no `n`."""

_SET_BY = {
    "model": "teacher.model",
    "messages": "teacher.instruction",
    "system": "teacher.system",
    "max_tokens": "teacher.max_tokens",
    "temperature": "teacher.temperature",
    "stream": "teacher.mode",
}

_OPTIONAL = {"temperature": ": the model samples at its own"}

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


class AnthropicTeacher(Adapting):
    """`/messages` with the student's prefix as an open assistant turn, or with an instruction to continue it."""

    caches_after_first = True
    thinking_off = 'Set teacher.extra = { thinking = { type = "disabled" } }, or raise teacher.max_tokens.'

    def __init__(self, config: TeacherConfig) -> None:
        key = api_key(config, _KEY)
        self.headers: Mapping[str, str] = {"anthropic-version": _VERSION} | ({"x-api-key": key} if key else {})
        self.base_urls = base_urls(config, _DEFAULT_URL)
        self._continuation, self.why = prefill_or_instruct(config, _PREFILLS, "assistant")
        self._config = config
        self._extra = checked_extra(config, _SET_BY)
        self._learned = Learned(config.model, _MOST_CHOICES, _OPTIONAL)

    def adapt(self, status: int, body: Any) -> str | None:
        said = words(status, body)
        if self._config.continuation == "auto" and self._continuation == "prefill" and NO_PREFILL.search(said):
            self._continuation = "instruct"
            return self._learned.changed("does not continue an open turn; continuation = instruct from here on")
        return self._learned.without_field(said)

    def request(self, ask: Ask) -> HttpRequest:
        shown, _ = open_end(ask.prefix)
        messages = _messages(ask.conversation)
        if shown:
            messages.append({"role": "assistant", "content": [_block(text) for text in _pieces(shown, ask.cuts)]})
        # One breakpoint, at the end of what the requests for this chunk and those for the later ones have in common.
        messages[-1]["content"][-1]["cache_control"] = {"type": "ephemeral"}
        if shown and self._continuation == "instruct":
            messages.append({"role": "user", "content": [_block(self._config.instruction)]})
        body: dict[str, Any] = {"model": self._config.model, "max_tokens": ask.max_tokens}
        # 1 is the API's own, and newer models and versions of the API (2026-10-21) refuse to be told even that.
        if self._config.temperature != 1 and "temperature" not in self._learned.left_out:
            body["temperature"] = self._config.temperature
        if system := system_of(ask, self._config):
            body["system"] = system
        if ask.conversation.tools:
            # A continuation is text, so a call is not one; the tools say what the text may speak of.
            body |= {"tools": [_tool(tool["function"]) for tool in ask.conversation.tools],
                     "tool_choice": {"type": "none"}}  # fmt: skip
        return HttpRequest("/messages", merged(body | {"messages": messages}, self._extra))

    def parse(self, body: Any, ask: Ask) -> Answer:
        answer = mapping(body)
        if answer.get("type") != "message":
            raise ValueError("the answer is not a message")
        one = _rollout(answer, ask.prefix)
        return Answer(str(answer.get("model", "")), [one], usage_or_none(answer.get("usage"), _usage))

    def worst_case(self, ask: Ask) -> Usage:
        tokens = prompt_bytes(ask, self._continuation, self._config)
        hour = tokens if '"1h"' in json.dumps(self._config.extra) else 0  # the user may ask for the longer cache
        return Usage(tokens, 0, ask.max_tokens, cache_write_tokens=tokens, cache_write_1h_tokens=hour)


def _messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The turns as content blocks; what users and tools say in a row is one user message."""
    messages: list[dict[str, Any]] = []
    for turn in conversation.turns:
        role = "assistant" if turn["role"] == "assistant" else "user"
        if not messages or messages[-1]["role"] != role:
            messages.append({"role": role, "content": []})
        messages[-1]["content"] += _blocks(turn)
    return messages


def _blocks(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    if turn["role"] == "tool":
        return [{"type": "tool_result", "tool_use_id": turn["tool_call_id"], "content": turn["content"]}]
    # The API refuses a block without text.
    said = [_block(turn["content"])] if turn["content"].strip() else []
    return said + [
        {"type": "tool_use", "id": call["id"], "name": call["function"]["name"],
         "input": json.loads(call["function"]["arguments"])}
        for call in turn.get("tool_calls", ())
    ]  # fmt: skip


def _tool(function: Mapping[str, Any]) -> dict[str, Any]:
    about = {"description": function["description"]} if function.get("description") else {}
    schema: Any = function.get("parameters") or {"type": "object", "properties": {}}
    return {"name": function["name"], **about, "input_schema": schema}


def _rollout(message: Mapping[str, Any], prefix: str) -> Rollout:
    stop = text_or_none(message.get("stop_reason"))
    blocks = [mapping(block) for block in listing(message.get("content"))]
    if stop == "refusal":
        return Rollout("refused", None, stop)
    text = joined([block for block in blocks if block.get("type") == "text"])
    kinds = {block.get("type") for block in blocks}
    if not text and (stop in ("tool_use", "pause_turn") or "tool_use" in kinds):
        return Rollout("failed", None, stop or "tool_use")
    thought = not kinds.isdisjoint({"thinking", "redacted_thinking"})
    return rollout(text, stop, open_end(prefix)[1], chat_after=prefix, thought=thought)


def _pieces(shown: str, cuts: tuple[int, ...]) -> list[str]:
    """The prefix as blocks that end where the earlier chunks' prefixes did: an entry of the cache is found only at the
    end of a block."""
    ends = sorted({len(shown[:cut].rstrip()) for cut in cuts} - {0, len(shown)})[-_LOOKBACK:]
    # The API refuses a block of whitespace; between two ends that are both after a letter there is none.
    return [shown[start:end] for start, end in pairwise([0, *ends, len(shown)])]


def _block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _usage(usage: Mapping[str, Any]) -> Usage:
    lives = mapping(usage.get("cache_creation") or {})
    hour = count(lives, "ephemeral_1h_input_tokens")
    read = count(usage, "cache_read_input_tokens")
    written = max(count(usage, "cache_creation_input_tokens"), hour + count(lives, "ephemeral_5m_input_tokens"))
    prompt = count(usage, "input_tokens") + read + written
    return Usage(prompt, read, count(usage, "output_tokens"), cache_write_tokens=written, cache_write_1h_tokens=hour)


def _most_choices(model: str) -> int | None:
    return _MOST_CHOICES


DIALECT = Dialect(
    find,
    continuations=("prefill", "instruct"),
    most_choices=_most_choices,
    price_provider="anthropic",
    key=_KEY,
    key_hosts=None,
)
