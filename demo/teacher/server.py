"""An OpenAI-compatible HTTP server for one small model, with dynamic batching.

    python -m omniopd.demo.teacher.server --model demo/models/teacher --port 0

When it is ready it writes one JSON line, ``{"url": "http://127.0.0.1:PORT", "model": "teacher"}``, to standard output.
SIGTERM and SIGINT end it. It serves ``/v1/models``, ``/v1/completions``, ``/v1/chat/completions`` (the messages'
contents joined, the last assistant message continued), ``/health`` and ``/stats``. Parameters that it would have to
ignore to the caller's harm (``stream``, ``logprobs``, ``echo`` and so on) are refused.

Requests that arrive while the model is busy are decoded together in the next batch; this is what makes it fast enough
for the demo on two cores.
"""

import argparse
import asyncio
import json
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError, model_validator

from .decoder import Completion, Decoder, Job

Body = TypeVar("Body", bound=BaseModel)

MAX_ROWS = 1024
"""Samples in one batch, which the decoder groups by length: with more, the first answers only come later."""

GATHER_S = 0.004
"""How long an idle server waits for more requests before it starts a batch."""


class ApiError(Exception):
    """A refusal in OpenAI's shape."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}


class Sampling(BaseModel):
    """What both endpoints take."""

    model: str
    n: int = Field(1, ge=1, le=128)
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0.0, le=2.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    stop: str | list[str] | None = None
    seed: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, body: Any) -> Any:
        """Refuse what would change the answer and is not implemented."""
        if isinstance(body, dict):
            for name in ("stream", "logprobs", "top_logprobs", "echo", "suffix", "tools", "response_format"):
                if body.get(name) not in (None, False):
                    raise ValueError(f"{name} is not supported by this server")
        return body


class CompletionBody(Sampling):
    """``POST /v1/completions``."""

    prompt: str | list[str]


class Message(BaseModel):
    """One chat message."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str


class ChatBody(Sampling):
    """``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


@dataclass(slots=True)
class Stats:
    """Counters since the start, as ``/stats`` reports them."""

    requests: int = 0
    completions: int = 0
    completion_tokens: int = 0
    batches: int = 0
    decode_s: float = 0.0


@dataclass(slots=True)
class _Pending:
    """A job and where its answer goes."""

    job: Job
    answer: "asyncio.Future[list[Completion]]"


@dataclass(slots=True)
class Batcher:
    """Collects jobs and decodes them together, one batch at a time, off the event loop."""

    decoder: Decoder
    stats: Stats = field(default_factory=Stats)
    _queue: "asyncio.Queue[_Pending]" = field(default_factory=asyncio.Queue)

    async def complete(self, job: Job) -> list[Completion]:
        """The job's completions, once its batch is done."""
        answer: asyncio.Future[list[Completion]] = asyncio.get_running_loop().create_future()
        await self._queue.put(_Pending(job, answer))
        return await answer

    async def run(self) -> None:
        """Serve batches until cancelled."""
        while True:
            batch = await self._gather()
            started = time.monotonic()
            try:
                answers = await asyncio.to_thread(self.decoder.complete, [pending.job for pending in batch])
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to these requests, not to the server
                for pending in batch:
                    if not pending.answer.done():
                        pending.answer.set_exception(error)
                continue
            self.stats.batches += 1
            self.stats.decode_s += time.monotonic() - started
            for pending, completions in zip(batch, answers, strict=True):
                if not pending.answer.done():  # a client that hung up has cancelled it
                    pending.answer.set_result(completions)

    async def _gather(self) -> list[_Pending]:
        """At least one job, and whatever else fits into a batch."""
        batch = [await self._queue.get()]
        await asyncio.sleep(GATHER_S)
        rows = batch[0].job.n
        while not self._queue.empty() and rows < MAX_ROWS:
            batch.append(self._queue.get_nowait())
            rows += batch[-1].job.n
        return batch


class Service:
    """The HTTP handlers of one served model."""

    def __init__(self, decoder: Decoder, name: str) -> None:
        self.batcher = Batcher(decoder)
        self.name = name
        self._created = int(time.time())

    def application(self) -> web.Application:
        """The routes, with the batcher running as long as the application does."""
        application = web.Application(middlewares=[_errors_as_json], client_max_size=16 * 2**20)
        application.add_routes(
            [
                web.get("/health", self._health),
                web.get("/stats", self._stats),
                web.get("/v1/models", self._models),
                web.post("/v1/completions", self._completions),
                web.post("/v1/chat/completions", self._chat),
            ]
        )
        application.cleanup_ctx.append(self._batching)
        return application

    async def _batching(self, _: web.Application) -> AsyncIterator[None]:
        task = asyncio.create_task(self.batcher.run())
        yield
        task.cancel()

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _stats(self, _: web.Request) -> web.Response:
        stats = self.batcher.stats
        return web.json_response({name: getattr(stats, name) for name in Stats.__slots__})

    async def _models(self, _: web.Request) -> web.Response:
        model = {"id": self.name, "object": "model", "created": self._created, "owned_by": "omniopd"}
        return web.json_response({"object": "list", "data": [model]})

    async def _completions(self, request: web.Request) -> web.Response:
        body = await _read(request, CompletionBody)
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        if not prompts:
            raise ApiError(400, "prompt is empty", param="prompt")
        done, usage = await self._answer(body, prompts, body.max_tokens or 16)
        choices = [
            {"index": index, "text": one.text, "logprobs": None, "finish_reason": one.finish_reason}
            for index, one in enumerate(done)
        ]
        return self._reply("cmpl", "text_completion", choices, usage)

    async def _chat(self, request: web.Request) -> web.Response:
        body = await _read(request, ChatBody)
        prompt = "".join(message.content for message in body.messages)
        done, usage = await self._answer(body, [prompt], body.max_completion_tokens or body.max_tokens or 64)
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": one.text},
                "logprobs": None,
                "finish_reason": one.finish_reason,
            }
            for index, one in enumerate(done)
        ]
        return self._reply("chatcmpl", "chat.completion", choices, usage)

    async def _answer(
        self, body: Sampling, prompts: list[str], max_tokens: int
    ) -> tuple[list[Completion], dict[str, int]]:
        """Every prompt's completions in order, and the usage."""
        if body.model != self.name:
            raise ApiError(404, f"The model {body.model!r} does not exist.", param="model", code="model_not_found")
        jobs = [self._job(body, prompt, max_tokens) for prompt in prompts]
        self.batcher.stats.requests += 1
        done = [one for answer in await asyncio.gather(*map(self.batcher.complete, jobs)) for one in answer]
        prompt_tokens = sum(len(job.prompt_ids) for job in jobs)
        completion_tokens = sum(one.tokens for one in done)
        self.batcher.stats.completions += len(done)
        self.batcher.stats.completion_tokens += completion_tokens
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        return done, {**usage, "total_tokens": prompt_tokens + completion_tokens}

    def _job(self, body: Sampling, prompt: str, max_tokens: int) -> Job:
        ids = self.batcher.decoder.encode(prompt)
        if len(ids) + max_tokens > self.batcher.decoder.context:
            raise ApiError(
                400,
                f"max_tokens: {max_tokens} after a prompt of {len(ids)} tokens exceeds this model's context of "
                f"{self.batcher.decoder.context}.",
                param="max_tokens",
                code="context_length_exceeded",
            )
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        return Job(ids, body.n, max_tokens, body.temperature, body.top_p, tuple(filter(None, stop)), body.seed)

    def _reply(self, prefix: str, kind: str, choices: list[dict[str, Any]], usage: dict[str, int]) -> web.Response:
        return web.json_response(
            {
                "id": f"{prefix}-{uuid.uuid4().hex}",
                "object": kind,
                "created": int(time.time()),
                "model": self.name,
                "choices": choices,
                "usage": usage,
            }
        )


async def _read(request: web.Request, kind: type[Body]) -> Body:
    """The request's body, checked; the first fault becomes a 400."""
    try:
        return kind.model_validate_json(await request.read())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(str(part) for part in first["loc"]) or None
        raise ApiError(400, f"{param}: {first['msg']}" if param else first["msg"], param=param) from error


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refusals and HTTP errors as ``{"error": …}``."""
    try:
        return await handler(request)
    except ApiError as refusal:
        return web.json_response({"error": refusal.error}, status=refusal.status)
    except web.HTTPException as error:
        body = {"message": error.reason, "type": "invalid_request_error", "param": None, "code": None}
        return web.json_response({"error": body}, status=error.status)


async def serve(decoder: Decoder, name: str, host: str, port: int, *, exit_with_stdin: bool) -> None:
    """Serve until SIGTERM or SIGINT, or until standard input is closed."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    if exit_with_stdin:
        # Nothing is ever written to it: it becomes readable when the process at its other end is gone.
        asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stopped.set)
    runner = web.AppRunner(Service(decoder, name).application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    listener = socket.create_server((host, port), backlog=2048)
    await web.SockSite(runner, listener, backlog=2048).start()
    url = f"http://{host}:{listener.getsockname()[1]}"
    sys.stdout.write(json.dumps({"url": url, "model": name}) + "\n")
    sys.stdout.flush()
    await stopped.wait()
    await runner.cleanup()


def main() -> None:
    """Load the model and serve it."""
    parser = argparse.ArgumentParser(description="Serve one small model over the OpenAI API.")
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face model folder")
    parser.add_argument("--served-model-name", help="the model's id in the API (default: the folder's name)")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 picks a free port")
    parser.add_argument("--exit-with-stdin", action="store_true", help="end when standard input is closed")
    arguments = parser.parse_args()
    if not (arguments.model / "config.json").is_file():
        parser.error(f"--model: {arguments.model} holds no config.json")
    name = arguments.served_model_name or arguments.model.resolve().name
    decoder = Decoder(arguments.model)
    asyncio.run(serve(decoder, name, arguments.host, arguments.port, exit_with_stdin=arguments.exit_with_stdin))


if __name__ == "__main__":
    main()
