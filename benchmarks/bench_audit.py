"""CPU time of a request with the ledger on, beside the openai SDK's default client on the same server and load.

    python benchmarks/bench_audit.py [--requests 4000] [--large 20000]

The server runs in its own process and answers at once with a fixed body. Ratios of CPU time within one run.
"""

import argparse
import asyncio
import gc
import json
import multiprocessing
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import uvloop

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
from omniopd.store.ledger import Budget, Caps, Ledger
from omniopd.store.schema import ROLLOUTS
from omniopd.store.sections import TeacherConfig
from omniopd.store.table import Table

PREFIX = "The next step is to add the two numbers and to carry one. " * 220  # 13 kB
CONCURRENCY = 64
RATES = Rates(1.0, 5.0, 0.1, 1.25, "benchmark")


class Server(asyncio.Protocol):
    """HTTP/1.1 with one answer: the cheapest server that both clients take for real."""

    answer = b""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer, self.left = transport, b"", -1

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, blank, body = self.buffer.partition(b"\r\n\r\n")
            if not blank:
                return
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            if len(body) < length:
                return
            self.buffer = body[length:]
            self.transport.write(self.answer)


def serve(listener: socket.socket) -> None:
    choice = {"index": 0, "text": "so the sum is 42 and the carry is one", "finish_reason": "length", "logprobs": None}
    usage = {"prompt_tokens": 3300, "completion_tokens": 12, "total_tokens": 3312}
    body = json.dumps({"id": "x", "object": "text_completion", "created": 1, "model": "bench", "choices": [choice],
                       "usage": usage}).encode()  # fmt: skip
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    Server.answer = head % len(body) + body

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Server, sock=listener)
        await server.serve_forever()

    uvloop.run(main())


def works(count: int) -> Iterator[Work]:
    for i in range(count):
        yield Work(f"{i:032x}", f"{i:032x}", Conversation.of("Q"), "Q\n", PREFIX, (0,), 32)


async def ours(base_url: str, count: int, folder: Path) -> None:
    config = TeacherConfig(model="bench", base_url=base_url, rollouts=1, max_concurrency=CONCURRENCY)
    teacher = OpenAITeacher(config, "completion", "", (base_url,), Host())
    table = Table(folder / "rollouts", ROLLOUTS)
    table.begin({})
    ledger = Ledger(folder / "ledger.sqlite", Caps(Budget.of(1e6, 10**12)))
    commit = GroupCommit(ledger)
    outbox = Outbox(table, 0, commit)
    context = AuditContext(outbox, 0, config, Fixed(1), teacher, RATES, commit, lambda rows, note: None)
    async with open_session(config, {}) as session:
        await Flow(context, session).run(works(count))
    assert table.manifest.rows == count
    ledger.close()


async def theirs(base_url: str, count: int) -> None:
    queue = works(count)
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none") as client:

        async def worker() -> None:
            for work in queue:
                prompt = work.prompt_text + work.prefix
                answer = await client.completions.create(model="bench", prompt=prompt, n=1, max_tokens=32)
                assert answer.choices[0].text

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


def measured(name: str, job: Any, count: int) -> float:
    """CPU microseconds of a request."""
    cpu, wall = time.process_time(), time.monotonic()
    uvloop.run(job)
    cpu, wall = time.process_time() - cpu, time.monotonic() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{name:<42} {cpu / count * 1e6:7.0f} us CPU  {count / cpu:7.0f} /s of CPU  {wall:6.1f} s  peak {peak:.0f} MiB"
    )
    return cpu / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--large", type=int, default=20000, help="requests of the run that shows the memory")
    arguments = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    server = multiprocessing.get_context("fork").Process(target=serve, args=(listener,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    n = arguments.requests
    # The SDK alone would not have to look through all that is loaded here.
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        measured("(warm-up)", ours(url, 500, Path(folder, "warm")), 500)
        mine = measured(f"omniopd, ledger on, {n}", ours(url, n, Path(folder, "a")), n)
        measured(
            f"omniopd, ledger on, {arguments.large}", ours(url, arguments.large, Path(folder, "b")), arguments.large
        )
        sdk = measured("openai SDK, default client", theirs(url, n // 4), n // 4)
    print(f"the SDK takes {sdk / mine:.1f} times the CPU time of a request")
    server.terminate()


if __name__ == "__main__":
    sys.exit(main())
