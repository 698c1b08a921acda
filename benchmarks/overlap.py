"""Wall time of generate and audit one after the other, and with `run.overlap`.

    python benchmarks/overlap.py [--questions 256]

The teacher answers after a quarter of a second and otherwise costs nothing, so that the time is the round's own. Not a
part of `make bench`.
"""

import argparse
import asyncio
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from omniopd.demo.task import problems
from omniopd.run import audit_beside
from omniopd.stages.audit.stage import audit
from omniopd.stages.generate.stage import generate
from omniopd.store.config import commented_toml
from omniopd.store.layout import RunDir

ROOT = Path(__file__).parent.parent
LATENCY_S = 0.25


def slow_teacher() -> Any:
    """The tests' scripted server, after a pause."""
    from aiohttp import web

    spec = importlib.util.spec_from_file_location("conftest", ROOT / "tests" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.ScriptedTeacher()

    def behave(body: dict[str, Any], number: int) -> Any:
        async def later(request: web.Request) -> web.Response:
            await asyncio.sleep(LATENCY_S)
            return web.json_response(server.answer(body))

        return later

    server.behave = behave
    return server


def one_round(folder: Path, questions: int, base_url: str, overlap: bool) -> tuple[float, float]:
    """Seconds of generate, and of generate and audit."""
    run = RunDir(folder)
    folder.mkdir()
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"question": p.question}) + "\n" for p in problems(questions, seed=0, split="train"))
    )
    values: dict[str, dict[str, Any]] = {
        "student": {"model": str(ROOT / "demo" / "models" / "student"), "engine": "transformers"},
        "data": {"prompts": str(prompts), "template": "{question}\n"},
        "generate": {"max_new_tokens": 56, "batch_size": 2, "part_rows": 16},
        "select": {"chunks": 3, "chunk_tokens": 6},
        "teacher": {"model": "scripted", "base_url": base_url, "rollouts": 4, "max_concurrency": 16},
        "run": {"overlap": overlap},
    }
    run.config_toml.write_text(commented_toml(values))
    config = run.config()
    start = time.monotonic()
    with audit_beside(run, 0, config, []):
        generate(run, 0, config)
        generated = time.monotonic() - start
    audit(run, 0, config)
    return generated, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=192)
    questions = parser.parse_args().questions
    server = slow_teacher()
    with tempfile.TemporaryDirectory() as folder:
        one_round(Path(folder, "warm"), 4, server.base_url, False)
        for overlap in (False, True):
            generated, whole = one_round(Path(folder, str(overlap)), questions, server.base_url, overlap)
            print(f"overlap {overlap!s:<6} generate {generated:5.1f} s, with audit {whole:5.1f} s")


if __name__ == "__main__":
    sys.exit(main())
