"""`omniopd view`: serve the pages of runs, to be looked at and nothing else."""

import asyncio
import errno
import functools
import hmac
import ipaddress
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ...store.config import Config
from ...store.errors import UsageError
from ...store.layout import RunDir
from ..report import parts
from ..report.build import page, who_learns
from ..status import read_status
from .runs import compared, names_of
from .watch import LivePage, Source, Watcher, figures_of, rows_of, state_of

_TRAJECTORIES = 1000
"""As `omniopd report` has."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Page:
    """What is served at one path."""

    name: str
    lead: tuple[str, str] | None
    live: LivePage


def view(runs: list[RunDir], host: str, port: int, *, browser: bool, say: Callable[[str], None]) -> None:
    """Serve until Ctrl-C.

    Raises:
        ConfigError: a run is not there.
        UsageError: the port is taken, or the address is not this machine's.
    """
    asyncio.run(serve(pages_of(runs), host, port, browser=browser, say=say))


def pages_of(runs: list[RunDir]) -> dict[str, Page]:
    """The page of each run by its path; of several there is one more, about all of them."""
    configs = [run.config() for run in runs]
    pages = [
        Page(name, who_learns(config), _live_page(run, config))
        for name, run, config in zip(names_of(runs), runs, configs, strict=True)
    ]
    if len(runs) == 1:
        return {"/": pages[0]}
    everything = LivePage({"findings": Source(functools.partial(compared, runs), lambda: _all(runs))})
    return {"/": Page("All runs", None, everything)} | {f"/{i}/": page for i, page in enumerate(pages, 1)}


def _all(runs: list[RunDir]) -> tuple[object, ...]:
    return tuple(state_of(run) for run in runs)


def _live_page(run: RunDir, config: Config) -> LivePage:
    def progress() -> parts.Part:
        return parts.progress(read_status(run, run.config()), live=True)

    def findings() -> parts.Part:
        config = run.config()
        return parts.findings(run, config, read_status(run, config), newest=True)

    return LivePage({
        "progress": Source(progress, lambda: state_of(run)),
        "findings": Source(findings, lambda: figures_of(run)),
        "trajectories": Source(lambda: parts.trajectories(run, config, _TRAJECTORIES), lambda: rows_of(run)),
    })  # fmt: skip


async def serve(pages: dict[str, Page], host: str, port: int, *, browser: bool, say: Callable[[str], None]) -> None:
    """Answer until the task is cancelled."""
    # Whoever can reach this machine could read the run; of a loopback address that is the user.
    token = "" if _is_loopback(host) else secrets.token_urlsafe(16)
    loop = asyncio.get_running_loop()
    failed: asyncio.Future[None] = loop.create_future()
    watcher = Watcher(
        (page.live for page in pages.values()), lambda error: loop.call_soon_threadsafe(failed.set_exception, error)
    )
    app = web.Application(middlewares=[_guard(token)])
    for path, shown in pages.items():
        app.router.add_get(path, functools.partial(_whole, pages, shown, f"?token={token}" if token else ""))
        app.router.add_get(f"{path}parts", functools.partial(_parts, shown.live, watcher))
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise _cannot_listen(error, host, port) from error
    watcher.start()
    address = _address(host, runner.addresses[0][1], token)
    say(f"{address}   (Ctrl-C ends it)")
    if browser and (sys.platform != "linux" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        # Without a screen a browser of the terminal might open in this one.
        webbrowser.open(address)
    try:
        await failed
    finally:
        await runner.cleanup()


def _cannot_listen(error: OSError, host: str, port: int) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"Port {port} is taken.", f"Choose another one: --port {port + 1}, or --port 0 for any.")
    if error.errno == errno.EACCES:
        return UsageError(f"Port {port} is not for ordinary users.", "Choose one above 1023: --port 8787.")
    return UsageError(f"{host} is no address of this machine.", "Choose another one: --host 127.0.0.1.")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _address(host: str, port: int, token: str) -> str:
    anywhere = host in ("0.0.0.0", "::")
    name = socket.gethostname() if anywhere else f"[{host}]" if ":" in host else host
    return f"http://{name}:{port}/{f'?token={token}' if token else ''}"


def _guard(token: str) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        # Without a token a page from elsewhere could reach this server under a name of its own (DNS rebinding).
        known = (
            hmac.compare_digest(request.query.get("token", "").encode(), token.encode())
            if token
            else _is_loopback(request.url.host or "")
        )
        if not known:
            raise web.HTTPForbidden(text="The address is the whole line that omniopd view has printed.\n")
        response = await handler(request)
        response.headers.update(_HEADERS)
        return response

    return guard


async def _whole(pages: dict[str, Page], shown: Page, query: str, request: web.Request) -> web.Response:
    links = [(path + query, page.name) for path, page in pages.items()] if len(pages) > 1 else []
    script = (Path(__file__).parent / "live.js").read_text(encoding="utf-8")
    text = page(
        shown.name, shown.lead, {"glossary": parts.glossary()}, "as it reads the run", live=script, links=links
    )  # fmt: skip
    return web.Response(text=text, content_type="text/html")


async def _parts(live: LivePage, watcher: Watcher, request: web.Request) -> web.Response:
    version = request.query.get("since", "0")
    answer = live.since(int(version) if version.isdecimal() else 0)
    watcher.wake()
    return web.Response(body=orjson.dumps(answer), content_type="application/json")
