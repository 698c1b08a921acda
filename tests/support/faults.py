"""Everything that may go wrong between a teacher and the stage that asks it."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import web

from .scripted_teacher import ScriptedTeacher

TIMEOUT_S = 1.0
"""teacher.timeout_s of a run whose teacher stalls."""


async def stall(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(1.5 * TIMEOUT_S)
    return web.json_response({})


async def half_a_body(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b'{"choices": [{"text": "ha')
    request.transport.close()
    return response


async def only_headers(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": "1000"})
    await response.prepare(request)
    request.transport.close()
    return response


def faults(teacher: ScriptedTeacher) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """What may happen to a request; each is as likely as the others."""

    def short(body: dict[str, Any]) -> web.Response:
        return web.json_response(teacher.answer(body | {"n": 1}))

    def changed(body: dict[str, Any], **changes: Any) -> web.Response:
        return web.json_response(teacher.answer(body) | changes)

    return {
        "429": lambda body: web.json_response({"error": "slow down"}, status=429),
        "429, later": lambda body: web.json_response({}, status=429, headers={"Retry-After": "0.02"}),
        "500": lambda body: web.json_response({"error": "oops"}, status=500),
        "529": lambda body: web.json_response({"error": {"type": "overloaded_error"}}, status=529),
        "hang up": lambda body: "hang up",
        "hang up after the headers": lambda body: only_headers,
        "half a body": lambda body: half_a_body,
        "no JSON": lambda body: web.Response(text="<html>", content_type="application/json"),
        "other JSON": lambda body: web.json_response({"choices": {"0": "text"}}),
        "invalid UTF-8": lambda body: web.Response(body=b'{"choices": "\xff\xfe"}', content_type="application/json"),
        "too large": lambda body: web.Response(body=b" " * 10_000_000, content_type="application/json"),
        "short n": short,
        "other model": lambda body: changed(body, model="other"),
        "the same id": lambda body: changed(body, id="same"),
        "stall": lambda body: stall,
    }
