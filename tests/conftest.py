"""What several suites share: the shipped student, a run directory, and a teacher whose behaviour a test scripts."""

import asyncio
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Models of a megabyte are fastest on one thread; said before torch is imported, and to every process a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
from aiohttp import web

import omniopd
from omniopd.demo.tasks.sums import problems
from omniopd.store.layout import RunDir

# Examples that touch the disk are slow on a busy machine, which says nothing about the code.
hypothesis.settings.register_profile(
    "busy",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.data_too_large],
)
hypothesis.settings.load_profile("busy")

STUDENT = Path(omniopd.__file__).parent / "demo" / "models" / "student"


@pytest.fixture
def student() -> Path:
    """A real Qwen3-architecture model that ships with the package."""
    return STUDENT


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunDir]:
    """A run directory with prompts and a config; keyword arguments are sections of the config."""

    def make(name: str = "run", questions: int = 12, **sections: dict[str, Any]) -> RunDir:
        prompts = tmp_path / f"{name}.jsonl"
        rows = [json.dumps({"question": p.question}) for p in problems(questions, seed=5, split="train")]
        prompts.write_text("\n".join(rows) + "\n")
        config: dict[str, dict[str, Any]] = {
            "student": {"model": str(STUDENT), "engine": "transformers"},
            "data": {"prompts": str(prompts), "template": "{question}\n"},
            "generate": {"max_new_tokens": 56, "batch_size": 8, "part_rows": 8},
            "select": {"chunks": 3, "chunk_tokens": 6},
            "teacher": {"model": "scripted", "base_url": "http://127.0.0.1:9/v1", "rollouts": 4, "max_tokens": 12},
            "score": {"unit": "char"},
            "train": {"lr": 1e-3, "global_batch": 4, "micro_batch": 4, "checkpoint_every": 1},
        }
        for section, values in sections.items():
            config.setdefault(section, {}).update(values)
        run = RunDir(tmp_path / name)
        run.path.mkdir()
        lines = [f"[{section}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items())
                 for section, keys in config.items()]  # fmt: skip
        run.config_toml.write_text("\n".join(lines))
        return run

    return make


@pytest.fixture
def worst_difference() -> Callable[..., tuple[float, float]]:
    """(model folder, [(prompt ids, Response)]) -> largest |log-prob - exact| and |entropy - exact| of all tokens, nats.

    The oracle: one sequence at a time in float32, without cache, padding or batch; softmax in float64.
    """

    def compare(folder: Path, written: list[tuple[Any, Any]]) -> tuple[float, float]:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        worst_logprob = worst_entropy = 0.0
        for prompt_ids, response in written:
            ids_T = torch.from_numpy(response.ids_T).long()
            with torch.no_grad():
                ids_S = torch.cat([torch.tensor(prompt_ids), ids_T])
                logits_TV = model(ids_S[None]).logits[0, len(prompt_ids) - 1 : -1].double()
            probs_TV = torch.softmax(logits_TV, dim=-1)
            exact_T = -torch.special.xlogy(probs_TV, probs_TV).sum(dim=-1)
            logprob_T = probs_TV.log().gather(1, ids_T[:, None]).squeeze(1)
            worst_logprob = max(worst_logprob, (torch.from_numpy(response.logprobs_T) - logprob_T).abs().max().item())
            worst_entropy = max(worst_entropy, (torch.from_numpy(response.entropies_T) - exact_T).abs().max().item())
        return worst_logprob, worst_entropy

    return compare


Behaviour = Callable[[dict[str, Any], int], Any]
"""(body, which request this is, from 0) -> None for a good answer, a web.Response, "hang up", or a handler."""


class ScriptedTeacher:
    """An OpenAI-compatible server in a thread, which counts, and misbehaves as told."""

    def __init__(self) -> None:
        self.behave: Behaviour = lambda body, number: None
        self.models = ["scripted"]
        self.most_choices = 1000
        self.chat_only = False
        self.bodies: list[dict[str, Any]] = []
        self.hosts: list[str] = []
        self.answered_at: list[int] = []
        self.in_flight = 0
        self.answered = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    @property
    def requests(self) -> int:
        return len(self.bodies)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/v1/models", self._list),
                web.post("/v1/completions", self._complete),
                web.post("/v1/chat/completions", self._complete),
            ]
        )
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"
        self._ready.set()

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": model} for model in self.models]})

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        if self.chat_only and "chat" not in request.path:
            raise web.HTTPNotFound
        body = await request.json()
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
        n = min(body["n"], self.most_choices)
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


@pytest.fixture
def teacher() -> Any:
    server = ScriptedTeacher()
    yield server
    server.stop()
