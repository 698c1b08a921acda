"""A model hub on loopback: what the Hugging Face hub's own client needs to upload a folder, and to download one."""

import asyncio
import base64
import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

from .loopback import Loopback


class Hub(Loopback):
    """`with Hub() as hub`: repositories that were made, and the files of the last commit.

    The repository `owner/model` has the files of the folder `model`, and its first listing takes `delay_s`.
    """

    def __init__(self, refuse: int | None = None, model: Path | None = None, delay_s: float = 0) -> None:
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.downloads: list[tuple[str, str]] = []
        """(revision, file) of each file that was sent."""
        self._refuse, self._model, self._delay_s = refuse, model, delay_s
        super().__init__(
            [
                web.post("/api/repos/create", self._create),
                web.post("/api/{kind}/{owner}/{name}/preupload/{revision}", self._preupload),
                web.post("/api/{kind}/{owner}/{name}/commit/{revision}", self._commit),
                web.post("/api/validate-yaml", self._validate),
                web.get("/api/models/owner/model/revision/{revision}", self._list),
                web.get("/api/models/owner/model/tree/{revision}", self._tree),
                web.get("/owner/model/resolve/{revision}/{name}", self._send),
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

    async def _list(self, _: web.Request) -> web.Response:
        assert self._model is not None
        delay, self._delay_s = self._delay_s, 0
        await asyncio.sleep(delay)
        names = sorted(path.name for path in self._model.iterdir())
        about = {"id": "owner/model", "sha": "c" * 40, "siblings": [{"rfilename": name} for name in names]}
        return web.json_response(about)

    async def _tree(self, _: web.Request) -> web.Response:
        assert self._model is not None
        return web.json_response(
            [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _hash(path)}
                for path in sorted(self._model.iterdir())
            ]
        )

    async def _send(self, request: web.Request) -> web.Response:
        assert self._model is not None
        revision, name = request.match_info["revision"], request.match_info["name"]
        headers = {"X-Repo-Commit": "c" * 40, "ETag": f'"{_hash(self._model / name)}"'}
        if request.method == "GET":
            self.downloads.append((revision, name))
        return web.Response(body=(self._model / name).read_bytes(), headers=headers)

    async def _validate(self, request: web.Request) -> web.Response:
        return web.json_response({"errors": [], "warnings": []})


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
