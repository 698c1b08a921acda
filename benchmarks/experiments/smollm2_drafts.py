"""How much of a teacher's drafts a real student accepts, by criterion and by the teacher's temperature.

    python benchmarks/experiments/smollm2.py MODEL
    python benchmarks/experiments/smollm2_drafts.py MODEL FOLDER --questions 60

The student is SmolLM2-135M-Instruct under its usual system prompt. The teacher is the same model with a tutor's system
prompt that has a worked example, behind the demo's server: another voice, in the student's own tokens. Nothing is
trained. Prints a Markdown table; one draft a question and temperature, each judged by all criteria.
"""

import argparse
import asyncio
import json
import random
import threading
from pathlib import Path

import numpy as np
from aiohttp import ClientSession, ClientTimeout, web

from omniopd.demo.teacher.process import TeacherServer
from omniopd.stages.audit.stage import audit
from omniopd.stages.generate.stage import generate
from omniopd.stages.score.stage import score
from omniopd.store.config import commented_toml
from omniopd.store.errors import InputError
from omniopd.store.layout import RunDir

NAMES, THINGS = ("Tom", "Mia", "Omar", "Lena", "Kofi", "Ana"), ("apples", "coins", "books", "stamps", "shells")
TUTOR = (
    "You are a patient mathematics tutor. You solve every problem in short numbered steps and finish with the answer."
    " Example. Question: Sam has 4 pens, buys 8 more and loses 3. How many pens does he have? Answer: 1. Sam starts"
    " with 4 pens. 2. After buying 8 he has 4 + 8 = 12. 3. After losing 3 he has 12 - 3 = 9. The answer is 9."
)
CRITERIA = (("min_p", 0.02), ("typical", 0.02), ("probability", 0.02), ("rank", 5), ("rank", 50))


def questions(count: int) -> list[str]:
    draw = random.Random(0)
    return [
        f"{draw.choice(NAMES)} has {draw.randint(5, 60)} {(thing := draw.choice(THINGS))}, gets"
        f" {draw.randint(5, 40)} more and gives away {draw.randint(1, 5)}. How many {thing} are left?"
        for _ in range(count)
    ]


class Tutored:
    """A server of completions that puts the tutor's system prompt in the place of the student's, and forwards."""

    def __init__(self, upstream: str, usual: str, tutor: str) -> None:
        self._upstream, self._usual, self._tutor = upstream, usual, tutor
        self._ready, self._loop = threading.Event(), asyncio.new_event_loop()
        threading.Thread(target=self._serve, daemon=True).start()
        self._ready.wait()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._loop.run_forever()

    async def _start(self) -> None:
        app = web.Application()
        app.add_routes([web.route("*", "/v1/{path:.*}", self._forward)])
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        self._ready.set()

    async def _forward(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        if body and "prompt" in body:
            assert self._usual in body["prompt"]
            body["prompt"] = body["prompt"].replace(self._usual, self._tutor, 1)
        url = f"{self._upstream}/{request.match_info['path']}"
        # As long as the teacher takes: who asks has a limit of its own.
        patience = ClientTimeout(total=None)
        async with (
            ClientSession(timeout=patience) as session,
            session.request(request.method, url, json=body) as answer,
        ):
            return web.Response(body=await answer.read(), status=answer.status, content_type=answer.content_type)


def prepare(folder: Path, model: Path, url: str, count: int, temperature: float) -> RunDir:
    run = RunDir(folder / f"T={temperature:g}")
    run.path.mkdir(parents=True, exist_ok=True)
    prompts = run.path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": text}) + "\n" for text in questions(count)))
    values = {
        "student": {"model": str(model), "engine": "transformers", "dtype": "float32"},
        "data": {"prompts": str(prompts.absolute())},
        "generate": {"max_new_tokens": 120, "batch_size": 32},
        "select": {"chunks": 10, "chunk_tokens": 12},
        "teacher": {"base_url": url, "model": "teacher", "temperature": temperature, "seed": 0, "timeout_s": 600},
        "train": {"objective": "draft"},
    }
    run.config_toml.write_text(commented_toml(values))
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.3, 0.5, 1.0])
    args = parser.parse_args()
    usual = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    print("| teacher at T | criterion | accepted of drafted | median accepted | rejected at once | accepted whole |")
    print("|--:|---|--:|--:|--:|--:|")
    with TeacherServer(args.model) as upstream:
        url = Tutored(upstream, usual, TUTOR).url
        for temperature in args.temperatures:
            run = prepare(args.folder, args.model, url, args.questions, temperature)
            generate(run, 0, run.config())
            audit(run, 0, run.config())
            for name, threshold in CRITERIA:
                try:
                    score(run, 0, run.config((f"score.accept={name}", f"score.accept_threshold={threshold}")))
                except InputError as error:
                    print(f"| {temperature:g} | {name} {threshold:g} | {error.problem} | | | |")
                    continue
                drafts = run.round(0).drafts.read(["ids", "accepted"]).to_pylist()
                drafted = np.array([len(draft["ids"]) for draft in drafts])
                accepted = np.array([draft["accepted"] for draft in drafts])
                print(
                    f"| {temperature:g} | {name} {threshold:g} | {accepted.sum():,} of {drafted.sum():,}"
                    f" ({accepted.sum() / drafted.sum():.0%}) | {np.median(accepted):.0f} |"
                    f" {np.mean(accepted == 0):.0%} | {np.mean(accepted == drafted):.0%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
