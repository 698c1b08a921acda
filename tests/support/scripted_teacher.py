"""A teacher whose behavior a test scripts."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from .loopback import Loopback

Behaviour = Callable[[dict[str, Any], int], Any]
"""(body, which request this is, from 0) -> None for a good answer, a web.Response, "hang up", or a handler."""


class ScriptedTeacher(Loopback):
    """An OpenAI-compatible server in a thread, which counts, and misbehaves as told."""

    def __init__(self) -> None:
        self.behave: Behaviour = lambda body, number: None
        self.models = ["scripted"]
        self.model_facts: dict[str, Any] = {}
        self.closed_probes = 0
        self.most_choices = 1000
        self.chat_only = False
        self.bodies: list[dict[str, Any]] = []
        self.hosts: list[str] = []
        self.answered_at: list[int] = []
        self.in_flight = 0
        self.answered = 0
        super().__init__(
            [
                web.get("/v1/models", self._list),
                web.post("/v1/completions", self._complete),
                web.post("/v1/chat/completions", self._complete),
            ]
        )
        self.base_url = f"{self.url}/v1"

    @property
    def requests(self) -> int:
        return len(self.bodies)

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": model, **self.model_facts} for model in self.models]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if self.chat_only and "chat" not in request.path:
            raise web.HTTPNotFound
        body = await request.json()
        if not body and self.closed_probes:
            self.closed_probes -= 1
            request.transport.close()
            return web.Response()
        if not body:
            return web.json_response({"error": {"message": "prompt is missing"}}, status=400)
        number = self.requests
        self.bodies.append(body)
        self.hosts.append(request.host.partition(":")[0])
        self.answered_at.append(self.answered)
        self.in_flight += 1
        await asyncio.sleep(0.005)
        verdict = self.behave(body, number)
        self.in_flight -= 1
        if verdict == "hang up":
            request.transport.close()
            return web.Response()
        if callable(verdict):
            return await verdict(request)
        if verdict is not None:
            return verdict
        self.answered += 1
        return web.json_response(self.answer(body))

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """What a good answer looks like: the text depends on the prompt and the index alone."""
        n = min(body.get("n", 1), self.most_choices)
        if "messages" in body:
            choices = [
                {"index": i, "message": {"role": "assistant", "content": f"+{i}"}, "finish_reason": "stop"}
                for i in range(n)
            ]
            return {"model": body["model"], "choices": choices, "usage": {"prompt_tokens": 5, "completion_tokens": n}}
        choices = [{"index": i, "text": f"{len(body['prompt'])}+{i}", "finish_reason": "length"} for i in range(n)]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": 4 * n,
                 "prompt_tokens_details": {"cached_tokens": 2}}  # fmt: skip
        return {"model": body["model"], "choices": choices, "usage": usage}
