"""Servers on loopback that check request bodies by the vendors' rules, and answer in the vendors' forms.

Each vendor counts a token for each character, and says what it was asked through `seen`.
"""

import asyncio
import json
import threading
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

KEY = "sk-test-not-a-real-key"


class Refusal(Exception):
    """What the vendor's API would answer to a request that breaks its rules."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def require(condition: object, message: str) -> None:
    if not condition:
        raise Refusal(400, message)


@dataclass
class Seen:
    """A request as the vendor understood it."""

    path: str
    question: str
    prefix: str
    n: int
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Vendor:
    """One dialect: its rules and its forms. `mode` is what the next answers are."""

    model: str
    kind: str = ""
    mode: str = "ok"
    text: str = "next"
    answers_as: str | None = None
    seen: list[Seen] = field(default_factory=list)

    def check_key(self, headers: dict[str, str]) -> bool:
        raise NotImplementedError

    def look_up(self, path: str) -> dict[str, Any]:
        raise NotImplementedError

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    @property
    def answered(self) -> str:
        return self.answers_as or self.model


class OpenAI(Vendor):
    """`rules`: vllm, openai, mistral or openrouter."""

    def __init__(self, rules: str, endpoints: tuple[str, ...] = ("/chat/completions",)) -> None:
        super().__init__("gpt-x", "openai")
        self.rules = rules
        self.endpoints = endpoints

    def check_key(self, headers: dict[str, str]) -> bool:
        return headers.get("Authorization") == f"Bearer {KEY}"

    def look_up(self, path: str) -> dict[str, Any]:
        return {"data": [{"id": self.model}]}

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        if path not in self.endpoints:
            raise Refusal(404, "not found")
        require(body.get("model") == self.model, "model is missing")
        common = {"model", "n", "temperature", "seed", "max_tokens"}
        if path == "/completions":
            require(not set(body) - common - {"prompt"}, f"unknown parameters in {sorted(body)}")
            return self._reply(Seen(path, "", body["prompt"], body["n"], headers, body))
        messages = body["messages"]
        roles = [message["role"] for message in messages]
        require(all(message["content"] for message in messages), "empty message")
        question, prefix = messages[0]["content"], messages[1]["content"] if len(messages) > 1 else ""
        if self.rules == "openai":
            require(not set(body) - common - {"messages", "max_completion_tokens"}, f"unknown in {sorted(body)}")
            require("max_completion_tokens" in body, "use max_completion_tokens")
            require(roles[-1] == "user", "the last message is not the user's")
        elif self.rules == "mistral":
            require(roles[-1] == "user" or messages[-1].get("prefix") is True, "the last message needs prefix: true")
        elif self.rules == "openrouter":
            require(messages[-1]["content"] == messages[-1]["content"].rstrip(), "trailing whitespace")
        elif roles[-1] == "assistant":
            require(body.get("continue_final_message") is True, "a new assistant message would begin")
            require(body.get("add_generation_prompt") is False, "both flags cannot be true")
        return self._reply(Seen(path, question, prefix, body["n"], headers, body))

    def _reply(self, seen: Seen) -> dict[str, Any]:
        self.seen.append(seen)
        n = 1 if self.mode == "short" else seen.n
        finish = "content_filter" if self.mode == "filtered" else "stop"
        text = "" if self.mode == "empty" else self.text
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.mode == "refused":
            message = {"role": "assistant", "content": None, "refusal": "no"}
        one = {"text": text} if seen.path == "/completions" else {"message": message}
        prompt = len(seen.question + seen.prefix)
        usage = {"prompt_tokens": prompt, "completion_tokens": n * len(text),
                 "prompt_tokens_details": {"cached_tokens": prompt // 2}}  # fmt: skip
        choices = [{"index": i, "finish_reason": finish, **one} for i in range(n)]
        return {"id": "same", "model": self.answered, "choices": choices, "usage": usage}


class Anthropic(Vendor):
    def __init__(self, prefills: bool) -> None:
        super().__init__("claude-haiku-4-5" if prefills else "claude-opus-5", "anthropic")
        self.prefills = prefills

    def check_key(self, headers: dict[str, str]) -> bool:
        return headers.get("x-api-key") == KEY

    def look_up(self, path: str) -> dict[str, Any]:
        if path != f"/models/{self.model}":
            raise Refusal(404, "no such model")
        return {"id": self.model, "type": "model"}

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        if path != "/messages":
            raise Refusal(404, "not found")
        require(headers.get("anthropic-version") == "2023-06-01", "anthropic-version: header is required")
        allowed = {"model", "max_tokens", "messages", "temperature", "system", "stop_sequences", "top_p", "top_k"}
        require(not set(body) - allowed, f"{sorted(set(body) - allowed)}: Extra inputs are not permitted")
        require(body.get("model") == self.model, "model")
        require(isinstance(body.get("max_tokens"), int) and body["max_tokens"] > 0, "max_tokens: Field required")
        require(0 <= body.get("temperature", 1) <= 1, "temperature: range: 0..1")
        messages = body["messages"]
        require(messages[0]["role"] == "user", "first message must use the user role")
        blocks = [block for message in messages for block in message["content"]]
        require(all(block["text"].strip() for block in blocks), "text content blocks must contain non-whitespace text")
        require(sum("cache_control" in block for block in blocks) <= 4, "A maximum of 4 blocks with cache_control")
        if messages[-1]["role"] == "assistant":
            require(self.prefills, "This model does not support assistant message prefill.")
            last = messages[-1]["content"][-1]["text"]
            require(last == last.rstrip(), "final assistant content cannot end with trailing whitespace")
        texts = ["".join(block["text"] for block in message["content"]) for message in messages]
        self.seen.append(Seen(path, texts[0], texts[1] if len(texts) > 1 else "", 1, headers, body))
        prompt = len("".join(texts))
        content = [] if self.mode in ("refused", "empty") else [{"type": "text", "text": self.text}]
        usage = {"input_tokens": 3, "cache_creation_input_tokens": prompt - 5, "cache_read_input_tokens": 2,
                 "output_tokens": len(self.text)}  # fmt: skip
        stop = "refusal" if self.mode == "refused" else "end_turn"
        return {"type": "message", "model": self.answered, "content": content, "stop_reason": stop, "usage": usage}


class Gemini(Vendor):
    def __init__(self, prefills: bool) -> None:
        super().__init__("gemini-2.5-flash" if prefills else "gemini-4-flash", "gemini")
        self.prefills = prefills

    def check_key(self, headers: dict[str, str]) -> bool:
        return headers.get("x-goog-api-key") == KEY

    def look_up(self, path: str) -> dict[str, Any]:
        if path != f"/models/{self.model}":
            raise Refusal(404, "no such model")
        return {"name": f"models/{self.model}"}

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> dict[str, Any]:
        if path != f"/models/{self.model}:generateContent":
            raise Refusal(404, "not found")
        require(set(body) <= {"contents", "generationConfig", "systemInstruction"}, "Unknown name")
        generation = body["generationConfig"]
        names = {"candidateCount", "maxOutputTokens", "temperature", "seed", "thinkingConfig"}
        require(set(generation) <= names, "Unknown name in generation_config")
        require(generation["candidateCount"] >= 1, "candidateCount must be positive")
        require(generation["candidateCount"] <= (8 if self.prefills else 1), "Multiple candidates is not enabled")
        require(generation["thinkingConfig"] == {"thinkingBudget": 0}, "thoughts would eat maxOutputTokens")
        contents = body["contents"]
        require(all(content["role"] in ("user", "model") for content in contents), "Please use a valid role")
        texts = ["".join(part["text"] for part in content["parts"]) for content in contents]
        require(all(texts), "contents.parts must not be empty")
        require(self.prefills or contents[-1]["role"] == "user", "Please ensure that the last turn is a user turn")
        n = generation["candidateCount"]
        self.seen.append(Seen(path, texts[0], texts[1] if len(texts) > 1 else "", n, headers, body))
        prompt = len("".join(texts))
        usage = {"promptTokenCount": prompt, "cachedContentTokenCount": 2, "candidatesTokenCount": n * len(self.text)}
        if self.mode == "blocked":
            usage["candidatesTokenCount"] = 0
            return {"promptFeedback": {"blockReason": "SAFETY"}, "modelVersion": self.answered, "usageMetadata": usage}
        candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": self.text}]},
                                     "finishReason": "STOP"}  # fmt: skip
        if self.mode == "filtered":
            candidate = {"finishReason": "SAFETY"}
        if self.mode == "empty":
            candidate = {"content": {"role": "model"}, "finishReason": "STOP"}
        count = 1 if self.mode == "short" else n
        return {"candidates": [candidate] * count, "modelVersion": self.answered, "usageMetadata": usage}


class LoopbackServer:
    """A server on a free port, in a thread, which hands every request to `_handle`. Ready when it is made."""

    most_bytes = 1 << 20
    """Of a request's body."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self, ready: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        ready.set()
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application(client_max_size=self.most_bytes)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError


class VendorServer(LoopbackServer):
    """A vendor behind a socket. `urls` are the addresses that were asked, query and all."""

    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.urls: list[str] = []
        super().__init__()

    async def _handle(self, request: web.Request) -> web.Response:
        self.urls.append(str(request.rel_url))
        path, headers = request.path.removeprefix("/v1"), dict(request.headers)
        try:
            if not self.vendor.check_key(headers):
                raise Refusal(401, "invalid key")
            if request.method == "GET":
                return web.json_response(self.vendor.look_up(path))
            return web.json_response(self.vendor.answer(path, headers, json.loads(await request.read())))
        except Refusal as refusal:
            kind = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}[refusal.status]
            error = {"type": "error", "error": {"type": kind, "message": str(refusal)}}
            return web.json_response(error, status=refusal.status)
