"""A run whose tables are written by hand, so that what a view shows can be said in advance."""

import json
from typing import Any

import numpy as np

from omniopd.store.evals import eval_of_run
from omniopd.store.layout import RunDir
from omniopd.store.ledger import Ledger, Reservation, Settlement
from omniopd.store.sections import ScoreConfig
from omniopd.store.table import Table
from omniopd.store.usage import Usage

TEXTS = ["Let me count.\nBut wait, I know sin A = 3/5.", "So the answer is 42."]


def write_tables(run: RunDir, texts: list[str] | None = None, rollout: str = "but I know sin A") -> RunDir:
    """Fill round 0: two trajectories, two chunks each, three rollouts a chunk (one failed), scored and half trained.

    A response's tokens are its characters' code points, so any text will do.
    """
    texts = texts or TEXTS
    round_ = run.round(0)
    rng = np.random.default_rng(0)
    trajectories: list[dict[str, Any]] = []
    chunks: list[dict[str, Any]] = []
    rollouts: list[dict[str, Any]] = []
    scores: list[dict[str, Any]] = []
    for number, text in enumerate(texts):
        ids = [min(ord(character), 0x7FFF) for character in text]
        trajectories.append({
            "trajectory_id": f"t{number}", "round": 0, "prompt_id": f"p{number}", "sample_index": 0,
            "question": f"question {number}", "prompt_text": f"question {number}\n", "prompt_ids": [1, 2],
            "response_text": text, "response_ids": ids, "logprobs": [-0.5] * len(ids),
            "entropies": rng.uniform(0, 2, len(ids)).tolist(), "finish_reason": "length" if number else "stop",
            "policy": "p", "entropy_source": "test", "repetition": 0.25,
        })  # fmt: skip
        for rank, start in enumerate((len(text) // 2, 1)):
            end = start + min(6, len(text) - start)
            chunk_id = f"t{number}c{rank}"
            chunks.append({
                "chunk_id": chunk_id, "trajectory_id": f"t{number}", "round": 0, "rank": rank, "anchor": start,
                "start": start, "end": end, "anchor_entropy": 2.0 - rank, "prior": 0.5,
                "prefix_text": text[:start], "chunk_text": text[start:end],
            })  # fmt: skip
            scores.append({
                "chunk_id": chunk_id, "phi": "edit", "unit": "char", "alpha": 1.0, "k_sem": 1.0 + number, "n": 2,
                "prior": 0.5, "pi_freq": 0.5, "pi_teacher": 0.25 + 0.25 * number, "phi_var": 0.0, "pi_low": 0.1,
                "pi_high": 0.9,
            })  # fmt: skip
            for index in range(3):
                failed = index == 2
                rollouts.append({
                    "chunk_id": chunk_id, "rollout_index": index, "teacher": "scripted",
                    "text": None if failed else rollout, "status": "failed" if failed else "ok",
                    "finish_reason": "http 500" if failed else "stop", "prompt_tokens": 10, "cached_tokens": 4,
                    "cache_write_tokens": 0, "completion_tokens": 5, "cost_usd": 0.001, "latency_s": 0.1, "attempts": 1,
                    "continuation": "completion", "request_id": chunk_id,
                })  # fmt: skip
    round_.trajectories.begin({})
    round_.trajectories.append(trajectories)
    round_.trajectories.finish()
    for table, rows in ((round_.chunks, chunks), (round_.rollouts, rollouts)):
        table.begin({})
        table.append(rows)
        table.finish()
    table = round_.scores_of(ScoreConfig(unit="char"))
    table.begin({})
    table.append(scores)
    table.finish()
    round_.shards.begin({"scores": table.folder.name})
    run.metrics.mkdir()
    lines = [{"step": step, "chunk_loss": 0.3 - 0.1 * step, "kl_mean": 0.01 * step, "seconds": 2.0, "loss": 0.3,
              "tokens_per_s": 100.0, "skipped": False} for step in range(2)]  # fmt: skip
    (run.metrics / "train-round=000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"ste')
    ledger = Ledger(run.ledger)
    for chunk in chunks:
        name = chunk["chunk_id"]
        ledger.commit([Reservation(name, 0, "scripted", 5_000_000, 60, "teacher.price")], [])
        ledger.commit([], [Settlement(name, "settled", Usage(30, 12, 15), 3_000_000)])
    ledger.close()
    return run


def add_evaluation(run: RunDir, after: int, correct: list[bool], benchmark: str = "aime24") -> Table:
    """An evaluation of a policy by math_verify. Returns its verdicts, to be finished."""
    folder = eval_of_run(run, after, benchmark)
    responses, verdicts = folder.responses(), folder.verdicts("math_verify")
    responses.begin({"benchmark": benchmark})
    responses.append([
        {"question_id": str(i), "sample_index": 0, "response_tokens": 5, "finish_reason": "stop", "repetition": 0.0,
         "policy": "p"}
        for i in range(len(correct))
    ])  # fmt: skip
    responses.finish()
    verdicts.begin({})
    verdicts.append([
        {"question_id": str(i), "sample_index": 0, "grader": "math_verify", "correct": value, "reason": "wrong"}
        for i, value in enumerate(correct)
    ])  # fmt: skip
    return verdicts


def score_again(run: RunDir, **made_with: Any) -> None:
    """The weights of round 0 as if `score` had had these settings."""
    shards = run.round(0).shards
    for path in shards.folder.glob("manifest*"):
        path.unlink()
    shards.begin({"scores": "edit-char-alpha=1.0"} | made_with)
