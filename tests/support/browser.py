"""A page in headless Chromium, at the size and in the colours of a device. Spoken to by the DevTools protocol, because
`--window-size` ends at 500 px: no phone is that wide."""

import asyncio
import base64
import contextlib
import itertools
import shutil
from pathlib import Path

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name)) is not None), None)


class Page:
    def __init__(self, socket):
        self._socket = socket
        self._numbers = itertools.count(1)
        self.console = []

    async def call(self, method, **params):
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while True:
            message = await self._socket.receive_json()
            if message.get("method") in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
                self.console.append(message["params"])
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    async def evaluate(self, expression):
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression, seconds=60):
        for _ in range(seconds * 10):
            if await self.evaluate(expression):
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{expression} did not become true; console: {self.console}")

    async def show(self, url, width, dark=False, height=900):
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        await self.call("Page.navigate", url=url)
        await self.until("document.documentElement?.dataset.ready")

    async def picture(self, path, whole=False):
        shot = await self.call("Page.captureScreenshot", captureBeyondViewport=whole, **await self._clip(whole))
        Path(path).write_bytes(base64.b64decode(shot["data"]))

    async def _clip(self, whole):
        if not whole:
            return {}
        size = (await self.call("Page.getLayoutMetrics"))["cssContentSize"]
        return {"clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}}


@contextlib.asynccontextmanager
async def open_browser(folder):
    """A browser of its own, with its profile in the folder: root in a container needs --no-sandbox."""
    process = await asyncio.create_subprocess_exec(
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
        f"--user-data-dir={folder}", "about:blank", stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        told = Path(folder) / "DevToolsActivePort"
        for _ in range(600):
            if told.exists() and "\n" in told.read_text():
                break
            await asyncio.sleep(0.1)
        port = told.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                address = next(t for t in await answer.json() if t["type"] == "page")["webSocketDebuggerUrl"]
            async with session.ws_connect(address, max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page.call(f"{domain}.enable")
                yield page
    finally:
        process.terminate()
        await process.wait()
