# pyright: strict
"""Teachers that speak OpenAI's dialect: vLLM, SGLang, `transformers serve`, OpenAI and many providers.

https://platform.openai.com/docs/api-reference/chat
https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
https://api-docs.deepseek.com/guides/chat_prefix_completion
https://docs.mistral.ai/capabilities/completion/
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

from ....store.errors import TeacherError
from ....store.ledger import Usage
from ....store.sections import TeacherConfig
from ..teacher import Answer, Ask, Continuation, Dialect, Http, HttpRequest, Rollout
from .common import (
    CONTINUE,
    api_key,
    base_urls,
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

_DEFAULT_URL = "http://127.0.0.1:8000/v1"
KEY = "OPENAI_API_KEY"


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


# Without these two, vLLM and SGLang close the assistant message and start a new one.
_SELF_SERVED = Host(open_body={"continue_final_message": True, "add_generation_prompt": False})

HOSTS = {
    "api.openai.com": Host("instruct", max_tokens="max_completion_tokens"),
    "api.deepseek.com": Host("prefill", open_message={"prefix": True}),
    "api.mistral.ai": Host("prefill", open_message={"prefix": True}),
    # It may pass a request on to Anthropic, which refuses whitespace at the end.
    "openrouter.ai": Host("prefill", trims=True),
}


async def find(config: TeacherConfig, http: Http) -> "OpenAITeacher":
    """See `Find`."""
    urls = base_urls(config, _DEFAULT_URL)
    headers = _headers(config)
    for url in urls:
        models = await _models(http, url, headers)
        if models and config.model not in models:
            raise no_model(url, config.model, ", ".join(sorted(models)[:5]))
    host = HOSTS.get(urlsplit(urls[0]).hostname or "", _SELF_SERVED)
    continuation, why = await _continuation(config, http, urls[0], headers, host)
    if continuation == "prefill" and urlsplit(urls[0]).hostname == "api.deepseek.com" and not urls[0].endswith("/beta"):
        raise TeacherError(
            "DeepSeek continues an answer only under its beta address.",
            'Set teacher.base_url = "https://api.deepseek.com/beta".',
        )
    return OpenAITeacher(config, continuation, why, urls, host)


async def _continuation(
    config: TeacherConfig, http: Http, url: str, headers: Mapping[str, str], host: Host
) -> tuple[Continuation, str]:
    if config.continuation != "auto":
        return config.continuation, "as configured"
    if host.continuation is not None:
        return host.continuation, f"what {urlsplit(url).hostname} offers"
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


class OpenAITeacher:
    """`/completions` on the raw text, or `/chat/completions` whose last assistant message is continued, or that is
    asked to continue it."""

    most_choices: int | None = None
    caches_after_first = False

    def __init__(
        self, config: TeacherConfig, continuation: Continuation, why: str, urls: tuple[str, ...], host: Host
    ) -> None:
        self.continuation: Continuation = continuation
        self.why = why
        self.base_urls = urls
        self.headers: Mapping[str, str] = _headers(config)
        self._model = config.model
        self._temperature = config.temperature
        self._host = host

    def request(self, ask: Ask) -> HttpRequest:
        body: dict[str, Any] = {
            "model": self._model,
            "n": ask.n,
            self._host.max_tokens: ask.max_tokens,
            "temperature": self._temperature,
        }
        if ask.seed is not None:
            body["seed"] = ask.seed
        if self.continuation == "completion":
            return HttpRequest("/completions", body | {"prompt": ask.prompt_text + ask.prefix})
        messages: list[dict[str, Any]] = [{"role": "user", "content": ask.question}]
        shown = self._shown(ask)
        if shown and self.continuation == "prefill":
            messages.append({"role": "assistant", "content": shown, **self._host.open_message})
            body |= self._host.open_body
        elif shown:
            messages += [{"role": "assistant", "content": shown}, {"role": "user", "content": CONTINUE}]
        return HttpRequest("/chat/completions", body | {"messages": messages})

    def parse(self, body: Any, ask: Ask) -> Answer:
        answer = mapping(body)
        dropped = ask.prefix[len(self._shown(ask)) :]
        rollouts = [_rollout(mapping(choice), dropped) for choice in listing(answer.get("choices"))]
        usage = answer.get("usage")
        return Answer(str(answer.get("model", "")), rollouts, None if usage is None else _usage(mapping(usage)))

    def worst_case(self, ask: Ask) -> Usage:
        return Usage(prompt_bytes(ask, self.continuation), 0, ask.n * ask.max_tokens)

    def _shown(self, ask: Ask) -> str:
        """The part of the prefix that is sent."""
        trims = self.continuation == "instruct" or (self.continuation == "prefill" and self._host.trims)
        return open_end(ask.prefix)[0] if trims else ask.prefix


def _headers(config: TeacherConfig) -> dict[str, str]:
    key = api_key(config, KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _rollout(choice: Mapping[str, Any], dropped: str) -> Rollout:
    finish_reason = text_or_none(choice.get("finish_reason"))
    message = mapping(choice["message"]) if "message" in choice else {"content": choice.get("text")}
    if finish_reason == "content_filter":
        return Rollout("filtered", None, finish_reason)
    if message.get("refusal"):
        return Rollout("refused", None, finish_reason)
    return rollout(message.get("content"), finish_reason, dropped)


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details")
    cached = count(mapping(details), "cached_tokens") if details else count(usage, "prompt_cache_hit_tokens")
    return Usage(count(usage, "prompt_tokens"), cached, count(usage, "completion_tokens"))


DIALECT = Dialect(find)
