# pyright: strict
"""Google's Gemini API.

https://ai.google.dev/api/generate-content
https://ai.google.dev/gemini-api/docs/thinking
"""

import re
from collections.abc import Mapping
from typing import Any

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

_DEFAULT_URL = "https://generativelanguage.googleapis.com/v1beta"
_KEY = "GEMINI_API_KEY"

_PREFILLS = re.compile(r"gemini-(1\.5|2\.0|2\.5)-")
"""Models that continue a trailing model turn; later ones answer it with 400."""


def most_candidates(model: str) -> int | None:
    """How many continuations one request may ask for: later models answer more than one with 400 (js-genai#1609)."""
    return 8 if _PREFILLS.match(model) else 1


_FILTERED = {"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE", "IMAGE_SAFETY"}


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


class GeminiTeacher:
    """`:generateContent` with the student's prefix as an open model turn, or with an instruction to continue it."""

    caches_after_first = True

    def __init__(self, config: TeacherConfig) -> None:
        key = api_key(config, _KEY)
        # Never as ?key=: addresses end up in the logs of whatever lies between.
        self.headers: Mapping[str, str] = {"x-goog-api-key": key} if key else {}
        self.base_urls = base_urls(config, _DEFAULT_URL)
        self.continuation: Continuation
        if config.continuation == "auto":
            prefills = _PREFILLS.match(config.model) is not None
            self.continuation = "prefill" if prefills else "instruct"
            self.why = f"{config.model} {'takes' if prefills else 'is not known to take'} an open model turn"
        else:
            self.continuation = "instruct" if config.continuation == "instruct" else "prefill"
            self.why = "as configured"
        self.most_choices: int | None = most_candidates(config.model)
        self._model = config.model
        self._temperature = config.temperature

    def request(self, ask: Ask) -> HttpRequest:
        shown, _ = open_end(ask.prefix)
        contents = [_turn("user", ask.question)]
        if shown:
            contents.append(_turn("model", shown))
        if shown and self.continuation == "instruct":
            contents.append(_turn("user", CONTINUE))
        generation: dict[str, Any] = {
            "candidateCount": ask.n,
            "maxOutputTokens": ask.max_tokens,
            "temperature": self._temperature,
        }
        if ask.seed is not None:
            generation["seed"] = ask.seed
        if not self._model.startswith(("gemini-1.", "gemini-2.0-")):  # these do not think, and refuse to be told so
            generation["thinkingConfig"] = {"thinkingBudget": 0}
        body = {"contents": contents, "generationConfig": generation}
        return HttpRequest(f"/models/{self._model}:generateContent", body)

    def parse(self, body: Any, ask: Ask) -> Answer:
        answer = mapping(body)
        usage = answer.get("usageMetadata")
        feedback = answer.get("promptFeedback")
        blocked = mapping(feedback).get("blockReason") if feedback else None
        if blocked:
            rollouts = [Rollout("filtered", None, str(blocked))] * ask.n
        else:
            dropped = open_end(ask.prefix)[1]
            rollouts = [_rollout(mapping(candidate), dropped) for candidate in listing(answer.get("candidates"))]
        model = str(answer.get("modelVersion", "")).removeprefix("models/")
        return Answer(model, rollouts, None if usage is None else _usage(mapping(usage)))

    def worst_case(self, ask: Ask) -> Usage:
        return Usage(prompt_bytes(ask, self.continuation), 0, ask.n * ask.max_tokens)


def _turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text}]}


def _rollout(candidate: Mapping[str, Any], dropped: str) -> Rollout:
    reason = text_or_none(candidate.get("finishReason"))
    if reason in _FILTERED:
        return Rollout("filtered", None, reason)
    content = candidate.get("content")
    parts = listing(mapping(content).get("parts") or []) if content else []
    texts = [part.get("text", "") for part in map(mapping, parts) if not part.get("thought")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a part has no text")
    return rollout("".join(texts), reason, dropped)


def _usage(usage: Mapping[str, Any]) -> Usage:
    # Thoughts are billed as output.
    completion = count(usage, "candidatesTokenCount") + count(usage, "thoughtsTokenCount")
    return Usage(count(usage, "promptTokenCount"), count(usage, "cachedContentTokenCount"), completion)


DIALECT = Dialect(find, continuations=("prefill", "instruct"), most_choices=most_candidates, price_provider="google")
