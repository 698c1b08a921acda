# pyright: strict
"""Teachers that speak OpenAI's dialect: vLLM, SGLang, `transformers serve`, OpenAI and many providers.

https://platform.openai.com/docs/api-reference/chat
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
https://api-docs.deepseek.com/guides/chat_prefix_completion
https://docs.mistral.ai/capabilities/completion/
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from ....store.errors import TeacherError
from ....store.sections import TeacherConfig
from ....store.usage import Usage
from ..teacher import Answer, Ask, Continuation, Dialect, Http, HttpRequest, Rollout
from .common import api_key, base_urls, checked_extra, key_refused, merged, no_model, open_end, prompt_bytes, system_of
from .refusal import NO_PREFILL, Adapting, Learned, names, words
from .reply import count, joined, listing, mapping, rollout, text_or_none, usage_or_none

_DEFAULT_URL = "http://127.0.0.1:8000/v1"
KEY = "OPENAI_API_KEY"


_NEWER = "max_completion_tokens"
"""The later name of max_tokens, of which some models take no other."""


@dataclass(frozen=True)
class Host:
    """Where a provider departs from vLLM."""

    continuation: Continuation | None = None
    """What `auto` picks; None: ask the server whether it has /completions."""
    open_body: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What keeps the last assistant message open, in the request."""
    open_message: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The same, in the message itself."""
    max_tokens: str = "max_tokens"
    trims: bool = False
    """Whether a message that is left open may not end in whitespace."""
    thinking_off: str = '{ reasoning_effort = "none" }'
    """The value of teacher.extra that turns thinking off."""


# Without these two, vLLM and SGLang close the assistant message and start a new one.
_SELF_SERVED = Host(
    open_body={"continue_final_message": True, "add_generation_prompt": False},
    thinking_off='{ chat_template_kwargs = { enable_thinking = false } } or { reasoning_effort = "none" }',
)

HOSTS = {
    "api.openai.com": Host("instruct", max_tokens=_NEWER),
    "api.deepseek.com": Host(
        "prefill", open_message={"prefix": True}, thinking_off='{ thinking = { type = "disabled" } }'
    ),
    "api.mistral.ai": Host("prefill", open_message={"prefix": True}),
    # It may pass a request on to Anthropic, which refuses whitespace at the end.
    "openrouter.ai": Host("prefill", trims=True, thinking_off="{ reasoning = { enabled = false } }"),
}

_SET_BY = {
    "model": "teacher.model",
    "messages": "teacher.system and teacher.instruction",
    "prompt": "data.template",
    "n": "teacher.rollouts",
    "best_of": "teacher.rollouts",
    "max_tokens": "teacher.max_tokens",
    "max_completion_tokens": "teacher.max_tokens",
    "temperature": "teacher.temperature",
    "seed": "teacher.seed",
    "stream": "teacher.mode",
}

_OPTIONAL = {
    "temperature": ": the model samples at its own",
    "seed": ": rollouts are not repeatable",
    "add_special_tokens": ": the server may begin the prompt a second time",
}

_CHAT_ONLY = re.compile(r"chat/completions|chat model|not support(ed)? (for |by )?(the )?(text )?completions?", re.I)
"""How servers say that a model has no /completions."""

_CALLS = {"tool_calls", "function_call"}
_BROKEN_OFF = {"error", "abort", "insufficient_system_resource"}
"""Finish reasons of an answer that the server gave up."""


async def find(config: TeacherConfig, http: Http) -> "OpenAITeacher":
    """See `Find`."""
    urls = base_urls(config, _DEFAULT_URL)
    headers = headers_of(config)
    advice = ""
    for url in urls:
        models = await _models(http, url, headers)
        if any("*" in model for model in models):
            # A proxy's list of what it passes on, and to whom.
            advice = "" if config.model in models else f", and does not list {config.model} by name"
        elif models and config.model not in models:
            raise no_model(url, config.model, ", ".join(sorted(models)[:5]))
    host = HOSTS.get(urlsplit(urls[0]).hostname or "", _SELF_SERVED)
    continuation, why = await _continuation(config, http, urls[0], headers, host)
    if config.system and continuation == "completion":
        raise TeacherError(
            "A raw completion has no place for teacher.system.",
            "Write it into data.template, or set teacher.continuation to prefill or instruct.",
        )
    if continuation == "prefill" and urlsplit(urls[0]).hostname == "api.deepseek.com" and not urls[0].endswith("/beta"):
        raise TeacherError(
            "DeepSeek continues an answer only under its beta address.",
            'Set teacher.base_url = "https://api.deepseek.com/beta".',
        )
    return OpenAITeacher(config, continuation, why + advice, urls, host)


async def _continuation(
    config: TeacherConfig, http: Http, url: str, headers: Mapping[str, str], host: Host
) -> tuple[Continuation, str]:
    if config.continuation != "auto":
        return config.continuation, "as configured"
    if host.continuation is not None:
        return host.continuation, f"what {urlsplit(url).hostname} offers"
    if config.system:
        return "prefill", "teacher.system needs a chat"
    # An empty request is refused by an endpoint that exists, and is not found on one that does not.
    probe = await http.post(url + "/completions", headers, {})
    if probe.status in (404, 405):
        return "prefill", "the server has no /completions"
    return "completion", "the server has /completions"


async def _models(http: Http, url: str, headers: Mapping[str, str]) -> set[str]:
    """Ids that the server lists; empty where it lists none."""
    reply = await http.get(url + "/models", headers)
    if reply.status in (401, 403):
        raise key_refused(url, reply.status, KEY)
    body = reply.body
    if reply.status != 200 or not isinstance(body, dict):
        return set()
    data = cast("dict[str, Any]", body).get("data")
    entries = cast("list[Any]", data) if isinstance(data, list) else []
    return {str(cast("dict[str, Any]", entry).get("id")) for entry in entries if isinstance(entry, dict)}


class OpenAITeacher(Adapting):
    """`/completions` on the raw text, or `/chat/completions` whose last assistant message is continued, or that is
    asked to continue it."""

    caches_after_first = False

    def __init__(
        self, config: TeacherConfig, continuation: Continuation, why: str, urls: tuple[str, ...], host: Host
    ) -> None:
        self.why = why
        self.base_urls = urls
        self.headers: Mapping[str, str] = headers_of(config)
        self.thinking_off = f"Set teacher.extra = {host.thinking_off}, or raise teacher.max_tokens."
        self._config = config
        self._extra = checked_extra(config, _SET_BY)
        self._host = host
        self._continuation: Continuation = continuation
        self._max_tokens = host.max_tokens
        self._trims = host.trims
        self._learned = Learned(config.model, None, _OPTIONAL)

    def adapt(self, status: int, body: Any) -> str | None:
        said = words(status, body)
        if not said:
            return None
        return (
            self._other_continuation(said)
            or self._newer_name(said)
            or self._trimmed(said)
            or self._learned.fewer_choices(said)
            or self._learned.without_field(said)
        )

    def _other_continuation(self, said: str) -> str | None:
        if self._config.continuation != "auto":
            return None
        if self._continuation == "completion" and _CHAT_ONLY.search(said):
            self._continuation = "prefill"
            return self._learned.changed("has no raw completions; continuation = prefill from here on")
        if self._continuation == "prefill" and NO_PREFILL.search(said) and "whitespace" not in said:
            self._continuation = "instruct"
            return self._learned.changed("does not continue an open message; continuation = instruct from here on")
        return None

    def _newer_name(self, said: str) -> str | None:
        if self._max_tokens == _NEWER or not (names(said, self._max_tokens) and names(said, _NEWER)):
            return None
        self._max_tokens = _NEWER
        return self._learned.changed(f"takes {_NEWER}")

    def _trimmed(self, said: str) -> str | None:
        if self._trims or self._continuation != "prefill" or "trailing whitespace" not in said:
            return None
        self._trims = True
        return self._learned.changed("takes no whitespace at the end of an open message, which is held back")

    def request(self, ask: Ask) -> HttpRequest:
        raw = self._continuation == "completion"
        body: dict[str, Any] = {"model": self._config.model}
        body["max_tokens" if raw else self._max_tokens] = ask.max_tokens  # /completions has no other name
        if self.most_choices != 1:
            body["n"] = self._learned.choices(ask.n)
        body["temperature"] = self._config.temperature
        if ask.seed is not None:
            body["seed"] = ask.seed
        if raw:
            path = "/completions"
            body["prompt"] = ask.prompt_text + ask.prefix
            if ask.holds_bos:
                body["add_special_tokens"] = False  # vLLM's and SGLang's
        else:
            path = "/chat/completions"
            body |= self._chat(ask)
        sent = {name: value for name, value in body.items() if name not in self._learned.left_out}
        return HttpRequest(path, merged(sent, self._extra))

    def _chat(self, ask: Ask) -> dict[str, Any]:
        system, tools = system_of(ask, self._config), ask.conversation.tools
        messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        messages += [_turn(turn) for turn in ask.conversation.turns]
        # A continuation is text, so a call is not one; the tools say what the text may speak of.
        about: dict[str, Any] = {"tools": tools, "tool_choice": "none"} if tools else {}
        shown = self._shown(ask)
        if not shown:
            return {"messages": messages, **about}
        messages.append({"role": "assistant", "content": shown})
        if self._continuation == "prefill":
            messages[-1] |= self._host.open_message
            return {"messages": messages, **about, **self._host.open_body}
        return {"messages": [*messages, {"role": "user", "content": self._config.instruction}], **about}

    def parse(self, body: Any, ask: Ask) -> Answer:
        answer = mapping(body)
        usage = usage_or_none(answer.get("usage"), _usage)
        choices = [mapping(choice) for choice in listing(answer.get("choices"))]
        dropped = ask.prefix[len(self._shown(ask)) :]
        rollouts = [_rollout(_finished(choice, usage, ask), ask.prefix, dropped) for choice in choices]
        return Answer(str(answer.get("model", "")), rollouts, usage)

    def worst_case(self, ask: Ask) -> Usage:
        tokens = prompt_bytes(ask, self._continuation, self._config)
        return Usage(tokens, 0, self._learned.choices(ask.n) * ask.max_tokens, cache_write_tokens=tokens)

    def _shown(self, ask: Ask) -> str:
        """The part of the prefix that is sent."""
        trims = self._continuation == "instruct" or (self._continuation == "prefill" and self._trims)
        return open_end(ask.prefix)[0] if trims else ask.prefix


def _turn(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn that only calls tools has no content: some servers refuse an empty one."""
    return turn if turn["content"] or "tool_calls" not in turn else {**turn, "content": None}


def headers_of(config: TeacherConfig) -> dict[str, str]:
    """The header with the key, if there is one."""
    key = api_key(config, KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _finished(choice: Mapping[str, Any], usage: Usage | None, ask: Ask) -> Mapping[str, Any]:
    """A choice whose finish reason is `stop` where the server gives none and the bill shows that no choice of the
    answer can have been cut off."""
    if choice.get("finish_reason") is None and usage is not None and 0 < usage.completion_tokens < ask.max_tokens:
        return {**choice, "finish_reason": "stop"}
    return choice


def _rollout(choice: Mapping[str, Any], prefix: str, dropped: str) -> Rollout:
    finish_reason = text_or_none(choice.get("finish_reason"))
    reason = finish_reason or ""
    if reason.startswith("content_filter"):
        return Rollout("filtered", None, finish_reason)
    if reason in _BROKEN_OFF:
        return Rollout("failed", None, finish_reason)
    if "message" not in choice:
        return rollout(choice.get("text"), finish_reason, dropped)
    message = mapping(choice["message"])
    if message.get("refusal"):
        return Rollout("refused", None, finish_reason)
    content = message.get("content")
    calls = reason in _CALLS or message.get("tool_calls") or message.get("function_call")
    if calls and not joined(content):
        return Rollout("failed", None, finish_reason or "tool_calls")
    return rollout(content, finish_reason, dropped, chat_after=prefix, thought=_thought(message))


def _thought(message: Mapping[str, Any]) -> bool:
    """Whether a message has thinking beside its content (vLLM and DeepSeek, OpenRouter), or among its parts
    (Mistral)."""
    if any(message.get(name) for name in ("reasoning_content", "reasoning", "reasoning_details")):
        return True
    content = message.get("content")
    return isinstance(content, list) and any(
        isinstance(part, dict) and cast("dict[str, Any]", part).get("type") in ("thinking", "reasoning")
        for part in cast("list[Any]", content)
    )


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = mapping(usage.get("prompt_tokens_details") or {})
    prompt, completion = count(usage, "prompt_tokens"), count(usage, "completion_tokens")
    # xAI bills thinking as output, and counts it in the total alone. The last two are DeepSeek's and Kimi's.
    completion = max(completion, count(usage, "total_tokens") - prompt)
    places = ((details, "cached_tokens"), (usage, "prompt_cache_hit_tokens"), (usage, "cached_tokens"))
    cached = max(count(told, name) for told, name in places)
    return Usage(prompt, cached, completion, cache_write_tokens=count(details, "cache_write_tokens"))


DIALECT = Dialect(find, key=KEY, key_hosts=tuple(HOSTS))
