"""An application of aiohttp that is served on loopback, in a thread of its own."""

import asyncio
import threading
from collections.abc import Iterable

from aiohttp import web


class Loopback:
    """Serves from its creation until `stop`; `url` says where."""

    url: str

    def __init__(self, routes: Iterable[web.RouteDef], longest_body: int = 1 << 20) -> None:
        self._routes = list(routes)
        self._longest_body = longest_body
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        # A suite has hundreds of these, and each has sockets.
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _start(self) -> web.AppRunner:
        app = web.Application(client_max_size=self._longest_body)
        app.add_routes(self._routes)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        return runner
