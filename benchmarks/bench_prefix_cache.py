"""How much of the prompts a server with a prefix cache need not read, with the order of `audit` and without it.

    python benchmarks/bench_prefix_cache.py [--trajectories 100]
    python benchmarks/bench_prefix_cache.py --make-model FOLDER        # a random model for a real server, such as
    vllm serve FOLDER --served-model-name bench --dtype float32 --enforce-eager --block-size 32 \\
        --enable-prefix-caching --enable-prompt-tokens-details --num-gpu-blocks-override 750
    python benchmarks/bench_prefix_cache.py --url http://127.0.0.1:8000/v1 --trajectories 24

Without --url the server is a MODEL of vLLM's automatic prefix caching, not vLLM: blocks of 16 tokens, known by the hash
of all text up to their end; a block is there once the request that computed it is answered; the least recently used go
first, and of a request the last ones first; the last token of a prompt is always computed. Tokens are pieces of four
characters, prefill takes one millisecond for 200 tokens, and requests run side by side. With --url a token is a
character, as the shipped tokenizer has it.
"""

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import random
import socket
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvloop
from aiohttp import web

from omniopd.method.stopping import Fixed
from omniopd.stages.audit.client import open_session
from omniopd.stages.audit.context import AuditContext
from omniopd.stages.audit.flow import Flow
from omniopd.stages.audit.group_commit import GroupCommit
from omniopd.stages.audit.outbox import Outbox
from omniopd.stages.audit.price import Rates
from omniopd.stages.audit.teachers.openai import Host, OpenAITeacher
from omniopd.stages.audit.todo import Work
from omniopd.store.conversation import Conversation
from omniopd.store.ledger import Ledger
from omniopd.store.ledger_read import Totals
from omniopd.store.schema import ROLLOUTS
from omniopd.store.sections import TeacherConfig
from omniopd.store.table import Table

BLOCK, CHARACTERS = 16, 4
P, L, M, N = 200, 2000, 10, 10
CONCURRENCY = 32
RATES = Rates(1.0, 5.0, 0.1, 1.0, "benchmark")


class PrefixCache:
    """Which blocks are there."""

    def __init__(self, blocks: int) -> None:
        self._most = blocks
        self._blocks: OrderedDict[bytes, None] = OrderedDict()

    def chain(self, prompt: str) -> list[bytes]:
        """A name for each whole block of a prompt, given all before it."""
        size = BLOCK * CHARACTERS
        text = prompt.encode()
        running, names = hashlib.blake2b(digest_size=16), list[bytes]()
        for start in range(0, len(text) // size * size, size):
            running.update(text[start : start + size])
            names.append(running.digest())
        return names

    def cached(self, names: list[bytes], tokens: int) -> int:
        """Tokens at the beginning that need not be computed."""
        hit = next((i for i, name in enumerate(names) if name not in self._blocks), len(names))
        return min(hit, (tokens - 1) // BLOCK) * BLOCK

    def keep(self, names: list[bytes]) -> None:
        for name in reversed(names):
            self._blocks[name] = None
            self._blocks.move_to_end(name)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)


def serve(listener: socket.socket, blocks: int, most_choices: int) -> None:
    cache = PrefixCache(blocks)

    async def complete(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        prompt, n = body["prompt"], min(body["n"], most_choices)
        tokens = max(1, len(prompt) // CHARACTERS)
        names = cache.chain(prompt)
        cached = cache.cached(names, tokens)
        await asyncio.sleep((tokens - cached) / 200_000)
        cache.keep(names)
        choices = [{"index": i, "text": "so it is", "finish_reason": "length"} for i in range(n)]
        usage = {"prompt_tokens": tokens, "completion_tokens": 3 * n,
                 "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip
        return web.json_response({"model": "bench", "choices": choices, "usage": usage})

    async def main() -> None:
        app = web.Application(client_max_size=1 << 26)
        app.add_routes([web.post("/v1/completions", complete)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        await asyncio.Event().wait()

    uvloop.run(main())


def works(trajectories: int, characters: int, n: int, seed: int = 0) -> Iterator[Work]:
    """Trajectories of random text, M prefixes each."""
    chance = random.Random(seed)
    for t in range(trajectories):
        text = "".join(chance.choices("0123456789+-=", k=(P + L) * characters))
        prompt, response = text[: P * characters], text[P * characters :]
        for m, start in enumerate(sorted(chance.sample(range(L), M))):
            name = f"{t * M + m:032x}"
            yield Work(
                name, f"{t:032x}", Conversation.of("Q"), prompt, response[: start * characters], tuple(range(n)), 8
            )


def shuffled(trajectories: int, characters: int, n: int, seed: int = 0) -> list[Work]:
    """The same chunks in no order, each on its own."""
    everything = [
        Work(w.chunk_id, w.chunk_id, w.conversation, w.prompt_text, w.prefix, w.missing, w.max_tokens)
        for w in works(trajectories, characters, n, seed)
    ]
    random.Random(1).shuffle(everything)
    return everything


async def audit(base_url: str, queue: Any, n: int, at_once: int, folder: Path) -> Totals:
    config = TeacherConfig(model="bench", base_url=base_url, rollouts=n, timeout_s=600, max_concurrency=at_once)
    teacher = OpenAITeacher(config, "completion", "", (base_url,), Host())
    table = Table(folder / "rollouts", ROLLOUTS)
    table.begin({})
    ledger = Ledger(folder / "ledger.sqlite")
    commit = GroupCommit(ledger)
    outbox = Outbox(table, 0, commit)
    context = AuditContext(outbox, 0, config, Fixed(n), teacher, RATES, commit, lambda rows, note: None)
    async with open_session(config, {}) as session:
        await Flow(context, session).run(queue)
    totals = ledger.totals()
    ledger.close()
    return totals


def report(name: str, totals: Totals, formula: float) -> None:
    uncached = totals.prompt_tokens - totals.cached_tokens
    print(
        f"{name:<52} {totals.requests:>6} requests  cached {totals.cached_tokens / totals.prompt_tokens:6.1%}"
        f"  uncached / M(P+L/2) = {uncached / formula:.3f}"
    )


def against_the_model(count: int) -> None:
    print(f"a model of a prefix cache, not vLLM; {count} trajectories, P={P} L={L} M={M} N={N}, {CONCURRENCY} at once")
    for most_choices, takes in ((N, "takes n"), (1, "ignores n")):
        for tokens in (50_000, 200_000):
            for name, queue in (("in order", works), ("shuffled", shuffled)):
                listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
                server = multiprocessing.get_context("fork").Process(
                    target=serve, args=(listener, tokens // BLOCK, most_choices), daemon=True
                )
                server.start()
                url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
                with tempfile.TemporaryDirectory() as folder:
                    totals = uvloop.run(audit(url, queue(count, CHARACTERS, N), N, CONCURRENCY, Path(folder)))
                server.terminate()
                listener.close()
                report(
                    f"server {takes}, cache of {tokens:,} tokens, {name}", totals, count * M * (P + L / 2)
                )  # fmt: skip


def against_a_server(url: str, count: int) -> None:
    """Other texts for each order, so that the second finds nothing of the first. One rollout a chunk: of several, vLLM
    reports what the last one found in the cache, which the first has just filled."""
    print(f"{url}; {count} trajectories, P={P} L={L} M={M} N=1, 8 at once")
    for seed, (name, queue) in enumerate((("shuffled", shuffled), ("in order", works))):
        with tempfile.TemporaryDirectory() as folder:
            totals = uvloop.run(audit(url, queue(count, 1, 1, seed), 1, 8, Path(folder)))
        report(name, totals, count * M * (P + L / 2))


def make_model(folder: Path) -> None:
    """A Qwen3 of random weights with room for the prompts, and the shipped tokenizer: one token a character."""
    import shutil

    from transformers import Qwen3Config, Qwen3ForCausalLM

    shapes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 4096, "vocab_size": 320}
    Qwen3ForCausalLM(Qwen3Config(**shapes, **heads)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(__file__).parent.parent / "demo" / "models" / "teacher" / name, folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trajectories", type=int, default=100)
    parser.add_argument("--url", default="")
    parser.add_argument("--make-model", type=Path)
    arguments = parser.parse_args()
    if arguments.make_model:
        make_model(arguments.make_model)
    elif arguments.url:
        against_a_server(arguments.url, arguments.trajectories)
    else:
        against_the_model(arguments.trajectories)


if __name__ == "__main__":
    sys.exit(main())
