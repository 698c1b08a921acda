"""The vendors' batch APIs on loopback. Each row is checked by the rules of vendors.py."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from . import vendors


@dataclass
class Made:
    """A batch that was created."""

    id: str
    key: str
    rows: list[dict[str, Any]]
    created_at: float = field(default_factory=time.time)
    looks: int = 0
    state: str = ""
    answers: list[Any] | None = None


class BatchServer(vendors.LoopbackServer):
    """A vendor with its batch API. `fate` is what becomes of a row: ok, expired, broken (their fault), dropped."""

    most_rows = 50_000
    most_bytes = 1 << 30
    """Limits that are enforced when a batch is created."""

    def __init__(self, vendor: vendors.Vendor) -> None:
        self.vendor = vendor
        self.made: list[Made] = []
        self.files: dict[str, bytes] = {}
        self.fate: Callable[[int], str] = lambda number: "ok"
        self.ends_as = "ended"
        self.looks_until_the_end = 1
        self.lost: set[str] = set()
        """create: the answer to a creation does not arrive; before create: nor does the creation; list: it is not
        listed."""
        self.busy: list[int] = []
        """Statuses with which the next creations are refused."""
        self.garbled = False
        """Whether every other line of the results is cut in two."""
        self.clock_s = 0.0
        """How far the vendor's clock is ahead."""
        self.repeats = False
        self.rows_seen = 0
        super().__init__()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path.removeprefix("/v1")
        try:
            if not self.vendor.check_key(dict(request.headers)):
                raise vendors.Refusal(401, "invalid key")
            vendors.require(request.headers.get("anthropic-version") or self.vendor.kind != "anthropic", "version")
            answer = await getattr(self, f"_{self.vendor.kind}")(request, path)
        except vendors.Refusal as refusal:
            kind = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error"}
            error = {"type": kind.get(refusal.status, "api_error"), "message": str(refusal)}
            return web.json_response({"type": "error", "error": error}, status=refusal.status)
        if answer == "lost":
            request.transport.close()
            return web.Response()
        return answer if isinstance(answer, web.Response) else web.json_response(answer)

    # -- what the three have in common

    def _create(self, key: str, rows: list[dict[str, Any]], ids: list[str]) -> Any:
        if self.busy:
            raise vendors.Refusal(self.busy.pop(0), "overloaded")
        if "before create" in self.lost:
            return None
        vendors.require(len(rows) <= self.most_rows, "too many requests in a batch")
        vendors.require(len(set(ids)) == len(ids), "custom ids are not unique")
        vendors.require(all(0 < len(i) <= 64 and i.isalnum() for i in ids), "custom ids do not match")
        self.made.append(Made(f"batch{len(self.made)}", key, rows, time.time() + self.clock_s))
        return None if "create" in self.lost else self.made[-1]

    def _look(self, batch_id: str) -> Made:
        batch = next(b for b in self.made if b.id == batch_id)
        batch.looks += 1
        if batch.looks > self.looks_until_the_end and not batch.state:
            batch.state = self.ends_as
        return batch

    def _listed(self) -> list[Made]:
        """Newest first."""
        return [] if "list" in self.lost else self.made[::-1]

    def _cancel(self, batch_id: str) -> Made:
        batch = next(b for b in self.made if b.id == batch_id)
        batch.state = "cancelled"
        return batch

    def _file(self, lines: list[str]) -> bytes:
        if self.garbled:
            lines[::2] = [line[: len(line) // 2] for line in lines[::2]]
        return "\n".join([*lines, ""]).encode()

    def _answers(self, batch: Made, body_of: Callable[[dict[str, Any]], dict[str, Any]], path: str) -> list[Any]:
        """(row, fate, answer) of each row, last first: results have no order."""
        if batch.answers is not None:
            return batch.answers
        out = batch.answers = []
        key = {"openai": {"Authorization": f"Bearer {vendors.KEY}"}, "anthropic": {"anthropic-version": "2023-06-01"},
               "gemini": {}}[self.vendor.kind]  # fmt: skip
        for row in reversed(batch.rows):
            fate = self.fate(self.rows_seen)
            self.rows_seen += 1
            if fate == "dropped":
                continue
            answer = None
            if fate == "ok":
                try:
                    answer = self.vendor.answer(path, key, body_of(row))
                except vendors.Refusal as refusal:
                    fate, answer = "invalid", str(refusal)
            out += [(row, fate, answer)] * (2 if self.repeats else 1)
        return out

    # -- OpenAI

    async def _openai(self, request: web.Request, path: str) -> Any:
        if request.method == "POST" and path == "/files":
            form = await request.post()
            vendors.require(form["purpose"] == "batch", "purpose")
            name = f"file-{len(self.files)}"
            self.files[name] = form["file"].file.read()
            return {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "f", "purpose": "batch",
                    "status": "processed"}  # fmt: skip
        if path.endswith("/cancel"):
            return self._openai_batch(self._cancel(path.split("/")[2]))
        if request.method == "POST" and path == "/batches":
            body = await request.json()
            vendors.require(body["completion_window"] == "24h", "completion_window")
            vendors.require(set(body) == {"completion_window", "endpoint", "input_file_id", "metadata"}, "unknown")
            rows = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
            vendors.require(all(row["url"] == body["endpoint"] and row["method"] == "POST" for row in rows), "url")
            made = self._create(body["metadata"]["omniopd"], rows, [row["custom_id"] for row in rows])
            return "lost" if made is None else self._openai_batch(made)
        if path == "/batches":
            vendors.require(int(request.query["limit"]) <= 100, "limit")
            data = [self._openai_batch(batch) for batch in self._listed()][: int(request.query["limit"])]
            return {"object": "list", "data": data, "has_more": False}
        if path.startswith("/batches/"):
            return self._openai_batch(self._look(path.rpartition("/")[2]))
        if path.startswith("/files/"):
            return web.Response(body=self._openai_file(path.split("/")[2]))
        if request.method == "GET":
            return self.vendor.look_up(path)
        raise vendors.Refusal(404, "not found")

    def _openai_batch(self, batch: Made) -> dict[str, Any]:
        state = {"": "in_progress", "ended": "completed"}.get(batch.state, batch.state)
        done = state in ("completed", "expired", "cancelled")
        errors = {"object": "list", "data": [{"code": "x", "message": "no such model"}]}
        return {"id": batch.id, "object": "batch", "endpoint": "e", "input_file_id": "f", "completion_window": "24h",
                "created_at": int(batch.created_at), "status": state, "metadata": {"omniopd": batch.key},
                "errors": errors if state == "failed" else None, "request_counts": self._openai_counts(batch, done),
                "output_file_id": f"out-{batch.id}" if done else None,
                "error_file_id": f"err-{batch.id}" if done else None}  # fmt: skip

    def _openai_counts(self, batch: Made, done: bool) -> dict[str, int]:
        answers = (
            self._answers(batch, lambda row: row["body"], batch.rows[0]["url"].removeprefix("/v1")) if done else []
        )
        completed = len({row["custom_id"] for row, fate, _ in answers if fate == "ok"})
        return {"total": len(batch.rows), "completed": completed, "failed": len(answers) - completed}

    def _openai_file(self, name: str) -> bytes:
        kind, _, batch_id = name.partition("-")
        batch = next(b for b in self.made if b.id == batch_id)
        lines = []
        url = batch.rows[0]["url"].removeprefix("/v1")
        for row, fate, answer in self._answers(batch, lambda row: row["body"], url):
            line: dict[str, Any] = {"id": "r", "custom_id": row["custom_id"], "response": None, "error": None}
            if fate == "ok" and kind == "out":
                line["response"] = {"status_code": 200, "request_id": "q", "body": answer}
            elif fate == "expired" and kind == "err":
                line["error"] = {"code": "batch_expired", "message": "This request could not be executed in time."}
            elif fate in ("broken", "invalid") and kind == "err":
                status = 500 if fate == "broken" else 400
                line["response"] = {"status_code": status, "body": {"error": {"message": answer or "oops"}}}
            else:
                continue
            lines.append(json.dumps(line))
        return self._file(lines)

    # -- Anthropic

    async def _anthropic(self, request: web.Request, path: str) -> Any:
        if request.method == "POST" and path == "/messages/batches":
            body = await request.json()
            vendors.require(set(body) == {"requests"}, "Extra inputs are not permitted")
            vendors.require(all(set(row) == {"custom_id", "params"} for row in body["requests"]), "row")
            made = self._create("", body["requests"], [row["custom_id"] for row in body["requests"]])
            return "lost" if made is None else self._anthropic_batch(made)
        if path == "/messages/batches":
            data = [self._anthropic_batch(batch) for batch in self._listed()][: int(request.query["limit"])]
            return {"data": data, "has_more": False, "last_id": "x"}
        if path.endswith("/cancel"):
            return self._anthropic_batch(self._cancel(path.split("/")[3]))
        if path.endswith("/results"):
            batch = next(b for b in self.made if b.id == path.split("/")[3])
            lines = [
                {"custom_id": row["custom_id"], "result": self._anthropic_result(fate, answer)}
                for row, fate, answer in self._answers(batch, lambda row: row["params"], "/messages")
            ]
            return web.Response(body=self._file([json.dumps(line) for line in lines]))
        if path.startswith("/messages/batches/"):
            return self._anthropic_batch(self._look(path.rpartition("/")[2]))
        if request.method == "GET":
            return self.vendor.look_up(path)
        raise vendors.Refusal(404, "not found")

    def _anthropic_batch(self, batch: Made) -> dict[str, Any]:
        names = {"ok": "succeeded", "expired": "expired"}
        counts = {"processing": len(batch.rows), "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
        if batch.state:
            answers = self._answers(batch, lambda row: row["params"], "/messages")
            fates = {row["custom_id"]: names.get(fate, "errored") for row, fate, _ in answers}
            counts |= {"processing": 0} | {name: list(fates.values()).count(name) for name in set(fates.values())}
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch.created_at + 1))
        return {"id": batch.id, "type": "message_batch", "request_counts": counts, "created_at": when,
                "processing_status": "ended" if batch.state else "in_progress",
                "cancel_initiated_at": when if batch.state == "cancelled" else None,
                "results_url": "http://127.0.0.1:9/elsewhere"}  # fmt: skip

    def _anthropic_result(self, fate: str, answer: Any) -> dict[str, Any]:
        if fate == "ok":
            return {"type": "succeeded", "message": answer}
        if fate == "expired":
            return {"type": "expired"}
        kind = "api_error" if fate == "broken" else "invalid_request_error"
        error = {"type": "error", "error": {"type": kind, "message": answer or "oops"}}
        return {"type": "errored", "error": error}

    # -- Gemini

    async def _gemini(self, request: web.Request, path: str) -> Any:
        if request.method == "POST" and path == f"/models/{self.vendor.model}:batchGenerateContent":
            batch = (await request.json())["batch"]
            vendors.require(set(batch) == {"displayName", "inputConfig"}, "Unknown name")
            rows = batch["inputConfig"]["requests"]["requests"]
            vendors.require((request.content_length or 0) <= 20_000_000, "request payload size exceeds the limit")
            made = self._create(batch["displayName"], rows, [row["metadata"]["key"] for row in rows])
            return "lost" if made is None else self._gemini_batch(made)
        if path == "/batches":
            return {"operations": [self._gemini_batch(batch) for batch in self._listed()]}
        if path.endswith(":cancel"):
            self._cancel(path.rpartition("/")[2].removesuffix(":cancel"))
            return {}
        if path.startswith("/batches/"):
            batch = self._look(path.rpartition("/")[2])
            return self._gemini_batch(batch) | ({"response": self._gemini_answers(batch)} if batch.state else {})
        if request.method == "GET":
            return self.vendor.look_up(path)
        raise vendors.Refusal(404, "not found")

    def _gemini_batch(self, batch: Made) -> dict[str, Any]:
        state = {"": "RUNNING", "ended": "SUCCEEDED"}.get(batch.state, batch.state.upper())
        error = {"error": {"code": 3, "message": "no such model"}} if state == "FAILED" else {}
        metadata = {"state": f"BATCH_STATE_{state}", "displayName": batch.key}
        if batch.state:
            answers = self._answers(batch, lambda row: row["request"], f"/models/{self.vendor.model}:generateContent")
            done = {row["metadata"]["key"] for row, fate, _ in answers if fate == "ok"}
            metadata["batchStats"] = {"requestCount": str(len(batch.rows)), "successfulRequestCount": str(len(done))}
        return {"name": f"batches/{batch.id}", "done": bool(batch.state), "metadata": metadata, **error}

    def _gemini_answers(self, batch: Made) -> dict[str, Any]:
        if batch.state == "failed":
            return {}
        path = f"/models/{self.vendor.model}:generateContent"
        out = []
        for row, fate, answer in self._answers(batch, lambda row: row["request"], path):
            if fate == "ok":
                out.append({"response": answer, "metadata": row["metadata"]})
            else:
                code = {"expired": 4, "broken": 13, "invalid": 3}[fate]
                out.append({"error": {"code": code, "message": answer or "oops"}, "metadata": row["metadata"]})
        if self.garbled:
            out[::2] = [{"response": {}} for _ in out[::2]]
        return {"inlinedResponses": {"inlinedResponses": out}}
