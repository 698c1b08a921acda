"""`omniopd view` on a run of 1,000 trajectories of 6,000 tokens: how long its parts take, how large they are, and what
an open page costs while nothing changes.

    python benchmarks/bench_view.py
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from omniopd.store.layout import RunDir
from omniopd.store.sections import ScoreConfig
from omniopd.view.live.server import pages_of
from omniopd.view.report.build import page
from support.runs import write_run

TRAJECTORIES, TOKENS, CHUNKS, CHUNK_TOKENS, ROLLOUTS = 1000, 6000, 10, 50, 10
WORDS = 2000
LOOKS = 200
SECONDS_BETWEEN_LOOKS = 2.0
"""Of the page's script."""


def fill(run: RunDir) -> None:
    """Round 0, written part by part as the stages do."""
    rng = np.random.default_rng(0)
    words = [" " + "".join(chr(97 + c) for c in rng.integers(0, 26, rng.integers(2, 7))) for _ in range(WORDS)]
    round_ = run.round(0)
    scores = round_.scores_of(ScoreConfig())
    for table in (round_.trajectories, round_.chunks, round_.rollouts, scores):
        table.begin({})
    for first in range(0, TRAJECTORIES, 100):
        trajectories: list[dict[str, Any]] = []
        chunks: list[dict[str, Any]] = []
        rollouts: list[dict[str, Any]] = []
        scored: list[dict[str, Any]] = []
        for number in range(first, first + 100):
            ids = rng.integers(0, WORDS, TOKENS)
            trajectories.append({
                "trajectory_id": f"t{number:05d}", "round": 0, "prompt_id": f"p{number}", "sample_index": 0,
                "question": f"question {number}", "prompt_text": f"question {number}\n", "prompt_ids": [1] * 200,
                "response_text": "".join(words[i] for i in ids), "response_ids": ids,
                "logprobs": rng.normal(-0.5, 0.1, TOKENS),
                "entropies": rng.exponential(0.4, TOKENS), "finish_reason": "stop", "policy": "p",
                "entropy_source": "bench", "repetition": 0.1,
            })  # fmt: skip
            for rank, start in enumerate(
                np.sort(rng.choice(TOKENS // CHUNK_TOKENS, CHUNKS, replace=False)) * CHUNK_TOKENS
            ):
                chunk_id, own = f"t{number:05d}c{rank}", ids[start : start + CHUNK_TOKENS]
                chunks.append({
                    "chunk_id": chunk_id, "trajectory_id": f"t{number:05d}", "round": 0, "rank": rank, "anchor": start,
                    "start": start, "end": start + CHUNK_TOKENS, "anchor_entropy": 2.0, "prior": 0.5,
                    "prefix_text": "".join(words[i] for i in ids[:start]), "chunk_text": "".join(words[i] for i in own),
                })  # fmt: skip
                scored.append({
                    "chunk_id": chunk_id, "phi": "edit", "unit": "word", "alpha": 1.0, "k_sem": 5.0, "n": ROLLOUTS,
                    "prior": 0.5, "pi_freq": 0.5, "pi_teacher": float(rng.uniform()), "phi_var": 0.0, "pi_low": 0.1,
                    "pi_high": 0.9,
                })  # fmt: skip
                for index in range(ROLLOUTS):
                    text = "".join(
                        words[i] for i in np.where(rng.uniform(size=CHUNK_TOKENS) < 0.5, own, rng.permutation(own))
                    )
                    rollouts.append({
                        "chunk_id": chunk_id, "rollout_index": index, "teacher": "bench", "text": text, "status": "ok",
                        "finish_reason": "stop", "prompt_tokens": 3000, "cached_tokens": 0, "cache_write_tokens": 0,
                        "completion_tokens": CHUNK_TOKENS, "cost_usd": 0.001, "latency_s": 1.0, "attempts": 1,
                        "continuation": "completion", "request_id": chunk_id,
                    })  # fmt: skip
        tables = (
            (round_.trajectories, trajectories),
            (round_.chunks, chunks),
            (round_.rollouts, rollouts),
            (scores, scored),
        )
        for table, rows in tables:
            table.append(rows)
    for table in (round_.trajectories, round_.chunks, round_.rollouts, scores):
        table.finish()
    round_.shards.begin({"scores": scores.folder.name})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = write_run(Path(folder) / "run")
        fill(run)
        shown = pages_of([run])["/"]
        live = shown.live
        live.since(0)
        begun, cpu = time.monotonic(), time.process_time()
        live.refresh()
        built = {"seconds": time.monotonic() - begun, "cpu_seconds": time.process_time() - cpu}
        parts = live.since(0)["parts"]
        cpu = time.process_time()
        for _ in range(LOOKS):
            live._not_before.clear()  # pyright: ignore[reportPrivateUsage]
            live.refresh()
            orjson.dumps(live.since(10**18))
        look = (time.process_time() - cpu) / LOOKS
        skeleton = page(shown.name, shown.lead, {}, "", live="x")
        bytes_ = {"page": len(skeleton.encode()), **{name: len(orjson.dumps(part)) for name, part in parts.items()}}
        idle = {"cpu_ms_a_look": 1000 * look, "percent_of_a_core": 100 * look / SECONDS_BETWEEN_LOOKS}
        sys.stdout.write(
            json.dumps({"first": built, "bytes": bytes_, "all": sum(bytes_.values()), "idle": idle}, indent=1)
        )
        sys.stdout.write("\n")


if __name__ == "__main__":
    main()
