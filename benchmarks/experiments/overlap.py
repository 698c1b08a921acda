"""Wall time of generate and audit one after the other, and with `run.overlap`.

    python benchmarks/experiments/overlap.py [--questions 192]

Neither costs this machine much, so that the time is the round's own: the teacher answers after a quarter of a second,
and the trajectories, which were generated before, appear a part at a time, as if a GPU wrote them. Not a part of
`make bench`.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from omniopd.demo.tasks.sums import problems
from omniopd.run import audit_beside
from omniopd.stages.audit.stage import audit
from omniopd.stages.generate.stage import generate
from omniopd.store.config import commented_toml, made_with
from omniopd.store.layout import RunDir

sys.path.append(str(Path(__file__).parents[2] / "tests"))

from support.scripted_teacher import ScriptedTeacher

ROOT = Path(__file__).parents[2]
LATENCY_S = 0.25
PART, SECONDS_A_PART = 16, 2.0


def slow_teacher() -> ScriptedTeacher:
    """The tests' scripted server, after a pause."""
    from aiohttp import web

    server = ScriptedTeacher()

    def behave(body: dict[str, Any], number: int) -> Any:
        async def later(request: web.Request) -> web.Response:
            await asyncio.sleep(LATENCY_S)
            return web.json_response(server.answer(body))

        return later

    server.behave = behave
    return server


def make_run(folder: Path, questions: int, base_url: str, overlap: bool) -> RunDir:
    run = RunDir(folder)
    folder.mkdir()
    prompts = folder / "prompts.jsonl"
    rows = [json.dumps({"question": p.question}) for p in problems(questions, seed=0, split="train")]
    prompts.write_text("\n".join(rows) + "\n")
    values: dict[str, dict[str, Any]] = {
        "student": {"model": str(ROOT / "demo" / "models" / "student"), "engine": "transformers"},
        "data": {"prompts": str(prompts), "template": "{question}\n"},
        "generate": {"max_new_tokens": 56},
        "select": {"chunks": 3, "chunk_tokens": 6},
        "teacher": {"model": "scripted", "base_url": base_url, "rollouts": 4, "max_concurrency": 16},
        "run": {"overlap": overlap},
    }
    run.config_toml.write_text(commented_toml(values))
    return run


def one_round(run: RunDir, trajectories: Any) -> tuple[float, float]:
    """Seconds until the trajectories are there, and until they are audited."""
    config = run.config()
    table = run.round(0).trajectories
    start = time.monotonic()
    with audit_beside(run, 0, config, []):
        table.begin(made_with(config, "trajectories"))
        for first in range(0, trajectories.num_rows, PART):
            time.sleep(SECONDS_A_PART)
            table.append(trajectories.slice(first, PART))
        table.finish()
        generated = time.monotonic() - start
    audit(run, 0, config)
    return generated, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=192)
    questions = parser.parse_args().questions
    server = slow_teacher()
    with tempfile.TemporaryDirectory() as folder:
        source = make_run(Path(folder, "source"), questions, server.base_url, False)
        generate(source, 0, source.config())
        trajectories = source.round(0).trajectories.read()
        for overlap in (False, True):
            run = make_run(Path(folder, str(overlap)), questions, server.base_url, overlap)
            generated, whole = one_round(run, trajectories)
            print(f"overlap {overlap!s:<6} generated after {generated:5.1f} s, audited after {whole:5.1f} s")


if __name__ == "__main__":
    sys.exit(main())
