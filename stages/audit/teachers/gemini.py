# pyright: strict
"""Google's Gemini API.

https://ai.google.dev/api/generate-content
https://ai.google.dev/gemini-api/docs/thinking
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
from .reply import count, listing, mapping, required_text, rollout, text_or_none, usage_or_none

_DEFAULT_URL = "https://generativelanguage.googleapis.com/v1beta"
_KEY = "GEMINI_API_KEY"

_PREFILLS = re.compile(r"gemini-(1\.5|2\.0|2\.5)-")
"""Models that continue a trailing model turn; later ones answer it with 400."""


def most_candidates(model: str) -> int | None:
    """How many continuations one request may ask for: later models answer more than one with 400 (js-genai#1609)."""
    return 8 if _PREFILLS.match(model) else 1


_FILTERED = {
    "SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "MODEL_ARMOR", "IMAGE_SAFETY",
    "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION",
}  # fmt: skip
_ANSWERED = {"STOP", "MAX_TOKENS", None}
"""Finish reasons of a text that is the model's answer. All others (OTHER, MALFORMED_RESPONSE, UNEXPECTED_TOOL_CALL,
and whatever comes) say that the API has none."""

_SET_BY = {
    "contents": "teacher.instruction",
    "systemInstruction": "teacher.system",
    "system_instruction": "teacher.system",
    "generation_config": "generationConfig",
    "generationConfig.candidateCount": "teacher.rollouts",
    "generationConfig.maxOutputTokens": "teacher.max_tokens",
    "generationConfig.temperature": "teacher.temperature",
    "generationConfig.seed": "teacher.seed",
}

_OPTIONAL = {"temperature": ": the model samples at its own", "seed": ": rollouts are not repeatable"}

_LEAST_BUDGET = 128
"""Of thinking tokens, for models that cannot be without (2.5 Pro). https://ai.google.dev/gemini-api/docs/thinking"""
_LEVEL_TOKENS = 1024
"""Room for the thoughts of models that take a level instead of a budget."""


async def find(config: TeacherConfig, http: Http) -> "GeminiTeacher":
    """See `Find`."""
    if config.continuation == "completion":
        raise cannot("gemini", "complete raw text", "Set teacher.continuation to prefill, instruct or auto.")
    teacher = GeminiTeacher(config)
    for url in teacher.base_urls:
        reply = await http.get(f"{url}/models/{config.model}", teacher.headers)
        # An invalid key is a 400 here; a question for a model's name can be wrong in no other way.
        if reply.status in (400, 401, 403):
            raise key_refused(url, reply.status, _KEY)
        if reply.status == 404:
            raise no_model(url, config.model)
    return teacher


class GeminiTeacher(Adapting):
    """`:generateContent` with the student's prefix as an open model turn, or with an instruction to continue it."""

    caches_after_first = True
    thinking_off = (
        "Set teacher.extra = { generationConfig = { thinkingConfig = { thinkingBudget = 0 } } }, or for Gemini 3"
        ' { thinkingLevel = "minimal" }; where the model cannot be without thinking, raise teacher.max_tokens.'
    )

    def __init__(self, config: TeacherConfig) -> None:
        key = api_key(config, _KEY)
        # Never as ?key=: addresses end up in the logs of whatever lies between.
        self.headers: Mapping[str, str] = {"x-goog-api-key": key} if key else {}
        self.base_urls = base_urls(config, _DEFAULT_URL)
        self._continuation, self.why = prefill_or_instruct(config, _PREFILLS, "model")
        self._config = config
        self._extra = checked_extra(config, _SET_BY)
        self._learned = Learned(config.model, most_candidates(config.model), _OPTIONAL)
        self._thinking = _first_thinking(config)

    def adapt(self, status: int, body: Any) -> str | None:
        said = words(status, body)
        if self._thinking is not None and re.search(r"thinking|\bbudget", said, re.IGNORECASE):
            self._thinking = self._thinking.after(said)
            return self._learned.changed(str(self._thinking or "is told nothing about thinking"))
        if self._config.continuation == "auto" and self._continuation == "prefill" and NO_PREFILL.search(said):
            self._continuation = "instruct"
            return self._learned.changed("does not continue an open turn; continuation = instruct from here on")
        return self._learned.fewer_choices(said) or self._learned.without_field(said)

    def request(self, ask: Ask) -> HttpRequest:
        shown, _ = open_end(ask.prefix)
        contents = _contents(ask.conversation)
        if shown:
            contents.append(_turn("model", shown))
        if shown and self._continuation == "instruct":
            contents.append(_turn("user", self._config.instruction))
        generation: dict[str, Any] = {
            "candidateCount": self._learned.choices(ask.n),
            "maxOutputTokens": self._most_tokens(ask),
            "temperature": self._config.temperature,
        }
        if ask.seed is not None:
            generation["seed"] = ask.seed
        if self._thinking is not None:
            generation["thinkingConfig"] = dict(self._thinking.config)
        sent = {name: value for name, value in generation.items() if name not in self._learned.left_out}
        body: dict[str, Any] = {"contents": contents, "generationConfig": sent}
        if system := system_of(ask, self._config):
            body["systemInstruction"] = {"parts": [{"text": system}]}
        if ask.conversation.tools:
            # A continuation is text, so a call is not one; the tools say what the text may speak of.
            body["tools"] = [{"functionDeclarations": [_declared(tool["function"]) for tool in ask.conversation.tools]}]
            body["toolConfig"] = {"functionCallingConfig": {"mode": "NONE"}}
        return HttpRequest(f"/models/{self._config.model}:generateContent", merged(body, self._extra))

    def _most_tokens(self, ask: Ask) -> int:
        """Thoughts count as output, so they need room beside the continuation."""
        return ask.max_tokens + (self._thinking.tokens if self._thinking is not None else 0)

    def parse(self, body: Any, ask: Ask) -> Answer:
        answer = mapping(body)
        feedback = answer.get("promptFeedback")
        blocked = mapping(feedback).get("blockReason") if feedback else None
        if blocked:
            rollouts = [Rollout("filtered", None, str(blocked))] * ask.n
        else:
            rollouts = [_rollout(mapping(candidate), ask.prefix) for candidate in listing(answer.get("candidates"))]
        model = str(answer.get("modelVersion", "")).removeprefix("models/")
        return Answer(model, rollouts, usage_or_none(answer.get("usageMetadata"), _usage))

    def worst_case(self, ask: Ask) -> Usage:
        prompt = prompt_bytes(ask, self._continuation, self._config)
        return Usage(prompt, 0, self._learned.choices(ask.n) * self._most_tokens(ask))


def _contents(conversation: Conversation) -> list[dict[str, Any]]:
    """The turns; what users and tools say in a row is one turn of the user."""
    contents: list[dict[str, Any]] = []
    called: dict[str, str] = {}
    for turn in conversation.turns:
        role = "model" if turn["role"] == "assistant" else "user"
        if not contents or contents[-1]["role"] != role:
            contents.append({"role": role, "parts": []})
        parts = contents[-1]["parts"]
        if turn["role"] == "tool":
            response = {"name": called[turn["tool_call_id"]], "response": {"result": turn["content"]}}
            parts.append({"functionResponse": response})
            continue
        if turn["content"]:
            parts.append({"text": turn["content"]})
        for call in turn.get("tool_calls", ()):
            function = call["function"]
            called[call["id"]] = function["name"]
            parts.append({"functionCall": {"name": function["name"], "args": json.loads(function["arguments"])}})
    return contents


def _declared(function: Mapping[str, Any]) -> dict[str, Any]:
    declared = {name: function[name] for name in ("name", "description") if function.get(name)}
    return declared | ({"parametersJsonSchema": function["parameters"]} if function.get("parameters") else {})


@dataclass(frozen=True)
class _Thinking:
    """What a request says about thinking, and how many tokens the thoughts may take."""

    config: Mapping[str, Any]
    tokens: int

    def __str__(self) -> str:
        ((name, value),) = self.config.items()
        return f"cannot be without thinking: {name} = {value}, and {self.tokens} more output tokens each to pay for it"

    def after(self, said: str) -> "_Thinking | None":
        """The next thing to say after a refusal of this: nothing at all where a model does not know thinking, the least
        budget, the lowest level."""
        if "thinkingLevel" in self.config or _NO_THINKING.search(said):
            return None
        if "thinkingBudget" in self.config and not self.tokens and not re.search("level", said, re.IGNORECASE):
            least = _LEAST.search(said)
            budget = int(least[1]) if least else _LEAST_BUDGET
            return _Thinking({"thinkingBudget": budget}, budget)
        return _Thinking({"thinkingLevel": "low"}, _LEVEL_TOKENS)


_NO_THINKING = re.compile(
    r"thinking is not (enabled|supported)|not support thinking\b(?!_)|unknown name .?thinking", re.IGNORECASE
)
_LEAST = re.compile(
    r"(?:between|from|at least|minimum(?: of| is)?|greater than or equal to) *([1-9]\d*)", re.IGNORECASE
)


def _first_thinking(config: TeacherConfig) -> _Thinking | None:
    """What is said at first: nothing where the user says it, or to models that do not think and refuse to be told."""
    generation = config.extra.get("generationConfig", {})
    if "thinkingConfig" in generation or config.model.startswith(("gemini-1.", "gemini-2.0-")):
        return None
    return _Thinking({"thinkingBudget": 0}, 0)


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text}]}


def _rollout(candidate: Mapping[str, Any], prefix: str) -> Rollout:
    reason = text_or_none(candidate.get("finishReason"))
    if reason not in _ANSWERED:
        return Rollout("filtered" if reason in _FILTERED else "failed", None, reason)
    content = candidate.get("content")
    parts = [mapping(part) for part in listing(mapping(content).get("parts") or [])] if content else []
    thoughts = [part for part in parts if part.get("thought")]
    texts = [part for part in parts if not part.get("thought") and part.get("text") is not None]
    if not texts and any("functionCall" in part for part in parts):
        return Rollout("failed", None, "functionCall")
    text = "".join(map(required_text, texts))
    return rollout(text, reason, open_end(prefix)[1], chat_after=prefix, thought=bool(thoughts))


def _usage(usage: Mapping[str, Any]) -> Usage:
    # Thoughts are billed as output, and what tools bring as input.
    completion = count(usage, "candidatesTokenCount") + count(usage, "thoughtsTokenCount")
    prompt = count(usage, "promptTokenCount") + count(usage, "toolUsePromptTokenCount")
    return Usage(prompt, count(usage, "cachedContentTokenCount"), completion)


DIALECT = Dialect(
    find,
    continuations=("prefill", "instruct"),
    most_choices=most_candidates,
    price_provider="google",
    key=_KEY,
    key_hosts=None,
)
