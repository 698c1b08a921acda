"""A model hub on loopback: what the Hugging Face hub's own client needs to upload a folder."""

import base64
import json
from types import TracebackType
from typing import Any

from aiohttp import web

from .loopback import Loopback


class Hub(Loopback):
    """`with Hub() as hub`: repositories that were made, and the files of the last commit."""

    def __init__(self, refuse: int | None = None) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self._refuse = refuse
        super().__init__(
            [
                web.post("/api/repos/create", self._create),
                web.post("/api/{kind}/{owner}/{name}/preupload/{revision}", self._preupload),
                web.post("/api/{kind}/{owner}/{name}/commit/{revision}", self._commit),
                web.post("/api/validate-yaml", self._validate),
            ],
            longest_body=1 << 26,
        )

    def __enter__(self) -> "Hub":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _create(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization", ""))
        if self._refuse is not None:
            return web.json_response({"error": "You have no right to do that"}, status=self._refuse)
        asked = await request.json()
        self.created.append({"type": "model"} | asked)
        prefix = "datasets/" if asked.get("type") == "dataset" else ""
        return web.json_response({"url": f"{self.url}/{prefix}{asked['organization']}/{asked['name']}"})

    async def _preupload(self, request: web.Request) -> web.Response:
        asked = (await request.json())["files"]
        files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
        return web.json_response({"files": files})

    async def _commit(self, request: web.Request) -> web.Response:
        for line in (await request.text()).splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        of = request.match_info
        prefix = "datasets/" if of["kind"] == "datasets" else ""
        address = f"{self.url}/{prefix}{of['owner']}/{of['name']}/commit/{'0' * 40}"
        return web.json_response({"success": True, "commitOid": "0" * 40, "commitUrl": address})

    async def _validate(self, request: web.Request) -> web.Response:
        return web.json_response({"errors": [], "warnings": []})
