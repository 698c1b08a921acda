# pyright: strict
"""Teachers that speak OpenAI's dialect: vLLM, SGLang, `transformers serve` and many providers."""

import os
from collections.abc import Mapping
from typing import Any, cast

from ...store.config import TeacherConfig
from ...store.ledger import Usage
from .teacher import Answer, Ask, Continuation, HttpRequest, Rollout, WorstCase

_TEMPLATE_TOKENS = 256
"""Room for what a chat template and special tokens add to a prompt."""


class OpenAITeacher:
    """`/completions` on the raw text, or `/chat/completions` whose last assistant message is continued."""

    def __init__(self, config: TeacherConfig, continuation: Continuation) -> None:
        self.continuation: Continuation = continuation
        self.base_url = config.base_url.rstrip("/")
        self.headers: Mapping[str, str] = auth_headers(config)
        self._model = config.model
        self._temperature = config.temperature

    def request(self, ask: Ask) -> HttpRequest:
        body: dict[str, Any] = {
            "model": self._model,
            "n": ask.n,
            "max_tokens": ask.max_tokens,
            "temperature": self._temperature,
        }
        if ask.seed is not None:
            body["seed"] = ask.seed
        if self.continuation == "completion":
            return HttpRequest("/completions", body | {"prompt": ask.prompt_text + ask.prefix})
        messages = [{"role": "user", "content": ask.question}]
        if ask.prefix:
            messages.append({"role": "assistant", "content": ask.prefix})
            # Without these two, a server closes the assistant message and starts a new one.
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return HttpRequest("/chat/completions", body | {"messages": messages})

    def parse(self, body: Any) -> Answer:
        answer = _mapping(body)
        choices = answer.get("choices")
        if not isinstance(choices, list):
            raise ValueError("the answer has no list of choices")
        rollouts = [_rollout(_mapping(choice)) for choice in cast("list[Any]", choices)]
        usage = answer.get("usage")
        return Answer(str(answer.get("model", "")), rollouts, None if usage is None else _usage(_mapping(usage)))

    def worst_case(self, ask: Ask) -> WorstCase:
        # A tokenizer makes at most one token of a byte.
        text = len((ask.prompt_text + ask.question + ask.prefix).encode())
        return WorstCase(text + _TEMPLATE_TOKENS, ask.n * ask.max_tokens)


def auth_headers(config: TeacherConfig) -> dict[str, str]:
    """The key goes from the environment into the header and nowhere else."""
    key = os.environ.get(config.api_key_env, "")
    return {"Authorization": f"Bearer {key}"} if key else {}


def _rollout(choice: Mapping[str, Any]) -> Rollout:
    finish_reason = choice.get("finish_reason")
    message = _mapping(choice["message"]) if "message" in choice else {"content": choice.get("text")}
    text = message.get("content")
    if finish_reason == "content_filter":
        return Rollout("filtered", None, finish_reason)
    if message.get("refusal"):
        return Rollout("refused", None, finish_reason)
    if text is not None and not isinstance(text, str):
        raise ValueError("a choice's text is not a string")
    return Rollout("ok" if text else "empty", text or "", finish_reason)


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details")
    cached = _mapping(details).get("cached_tokens") or 0 if details else 0
    return Usage(int(usage.get("prompt_tokens") or 0), int(cached), int(usage.get("completion_tokens") or 0))


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)
