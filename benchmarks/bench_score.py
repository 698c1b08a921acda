"""The score stage: pairs a second for each φ, Parquet in and out, and memory and time up to ten million rollouts.

    python benchmarks/bench_score.py                        each φ beside its references, then growth
    python benchmarks/bench_score.py --pairs 20000 --rows 100000 300000   a short one

A pair is a chunk of 50 units and a rollout of 45 to 55, words Zipf-distributed over 5,000; ten rollouts a chunk, ten
chunks a trajectory of 600 tokens. Every figure for the stage is the whole of `omniopd score`: checks, φ, aggregation,
scores and shards, from files to files, in a process of its own.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa

from omniopd.store.config import Config
from omniopd.store.layout import RunDir
from omniopd.store.sections import ScoreConfig
from omniopd.store.table import Table

METRICS = ("edit", "rouge1", "rougeL", "jaccard", "bleu1", "bleu2", "exact")
ROLLOUTS_A_CHUNK = 10
CHUNKS_A_TRAJECTORY = 10
TOKENS = 600
POOL_CHUNKS = 20_000
"""Distinct chunks, each with its ten rollouts; more rows than these repeat them under other ids, so far apart that no
batch meets a text twice for it."""


def texts(seed: int = 0) -> tuple[list[str], list[str]]:
    """The pool: chunks, and ten times as many rollouts that share about half of their chunk's words."""
    rng = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, size)) for size in rng.integers(2, 10, 4990)] + list(",.=+-()x12"))
    weights = 1 / np.arange(1, len(words) + 1)
    weights /= weights.sum()
    chunks = rng.choice(len(words), (POOL_CHUNKS, 50), p=weights)
    rollouts: list[str] = []
    for chunk in chunks:
        kept = rng.random((ROLLOUTS_A_CHUNK, 55)) < 0.5
        other = rng.choice(len(words), kept.shape, p=weights)
        rows = np.where(kept, np.resize(chunk, 55), other)
        rollouts += [" ".join(words[row[:n]]) for row, n in zip(rows, rng.integers(45, 56, len(rows)), strict=True)]
    return [" ".join(words[chunk]) for chunk in chunks], rollouts


def write_round(run: RunDir, rows: int, pool: tuple[list[str], list[str]]) -> None:
    """A finished audit of `rows` rollouts."""
    round_ = run.round(0)
    pool_chunks, pool_rollouts = (pa.array(side) for side in pool)
    chunks = rows // ROLLOUTS_A_CHUNK
    trajectories = -(-chunks // CHUNKS_A_TRAJECTORY)

    def trajectory_rows(first: int, last: int) -> dict[str, Any]:
        n = last - first
        offsets = pa.array(np.arange(n + 1) * TOKENS, pa.int32())
        ids = pa.ListArray.from_arrays(offsets, pa.array(np.arange(n * TOKENS) % 150_000, pa.int32()))
        floats = pa.ListArray.from_arrays(offsets, pa.array(np.linspace(-3, 0, n * TOKENS), pa.float32()))
        prompt = pa.ListArray.from_arrays(
            pa.array(np.arange(n + 1) * 20, pa.int32()), pa.array([7] * 20 * n, pa.int32())
        )
        return {"trajectory_id": ids_of("t", np.arange(first, last)), "prompt_ids": prompt, "response_ids": ids,
                "logprobs": floats, "entropies": floats}  # fmt: skip

    def chunk_rows(first: int, last: int) -> dict[str, Any]:
        number = np.arange(first, last)
        start = number % CHUNKS_A_TRAJECTORY * 60
        return {"chunk_id": ids_of("c", number), "trajectory_id": ids_of("t", number // CHUNKS_A_TRAJECTORY),
                "start": start, "end": start + 50, "prior": np.full(len(number), 0.3),
                "chunk_text": pool_chunks.take(pa.array(number % POOL_CHUNKS))}  # fmt: skip

    def rollout_rows(first: int, last: int) -> dict[str, Any]:
        number = np.arange(first, last)
        return {"chunk_id": ids_of("c", number // ROLLOUTS_A_CHUNK), "rollout_index": number % ROLLOUTS_A_CHUNK,
                "status": pa.array(["ok"] * len(number)),
                "text": pool_rollouts.take(pa.array(number % len(pool_rollouts)))}  # fmt: skip

    for table, count, make in (
        (round_.trajectories, trajectories, trajectory_rows),
        (round_.chunks, chunks, chunk_rows),
        (round_.rollouts, rows, rollout_rows),
    ):
        table.begin({})
        for part in parts(table, count, make):
            table.append(part)
        table.finish()


def parts(table: Table, count: int, make: Callable[[int, int], dict[str, Any]]) -> Iterator[pa.Table]:
    """Rows of a table in the size of the audit's parts; what `make` leaves out is null."""
    step = 40_960 if table.spec.name == "rollouts" else 8_192
    for first in range(0, count, step):
        columns = make(first, last := min(first + step, count))
        yield pa.table(
            [
                pa.array(columns[field.name]).cast(field.type)
                if field.name in columns
                else pa.nulls(last - first, field.type)
                for field in table.spec.schema
            ],
            schema=table.spec.schema,
        )


def ids_of(kind: str, numbers: np.ndarray) -> list[str]:
    """Ids as long as the real ones, in no order."""
    scrambled = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return [
        f"{kind}{a:015x}{b:016x}" for a, b in zip((scrambled >> np.uint64(4)).tolist(), numbers.tolist(), strict=True)
    ]


def timed_stage(folder: Path, phi: str) -> dict[str, float]:
    """`omniopd score` in a process of its own: its seconds, CPU seconds and largest resident memory."""
    command = [sys.executable, __file__, "--child", str(folder), "--phi", phi]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def child(folder: Path, phi: str) -> None:
    """What `timed_stage` starts."""
    from omniopd.method.similarity.units import _kinds
    from omniopd.stages.score.stage import score

    _kinds()  # a quarter of a second, once a process
    shutil.rmtree(folder / "round=000" / "scores", ignore_errors=True)
    shutil.rmtree(folder / "round=000" / "shards", ignore_errors=True)
    began, cpu = time.perf_counter(), time.process_time()
    score(RunDir(folder), 0, Config(score=ScoreConfig(phi=phi)))
    print(
        json.dumps(
            {
                "s": time.perf_counter() - began,
                "cpu_s": time.process_time() - cpu,
                "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
    )


def plain_loops() -> dict[str, Callable[[str, str], float]]:
    """One pair at a time: the reference packages, and plain Python where there is none."""
    import Levenshtein
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU

    def units(text: str) -> list[str]:
        return re.findall(r"\w+|[^\w\s]", text)

    def cut(chunk: str, rollout: str) -> tuple[list[str], list[str]]:
        a, b = units(chunk), units(rollout)
        return a, b[: len(a)]

    def edit(chunk: str, rollout: str) -> float:
        a, b = cut(chunk, rollout)
        return 1 - Levenshtein.distance(a, b) / max(len(a), len(b))

    def rouge1(chunk: str, rollout: str) -> float:
        a, b = cut(chunk, rollout)
        return 2 * sum((Counter(a) & Counter(b)).values()) / (len(a) + len(b))

    def jaccard(chunk: str, rollout: str) -> float:
        a, b = map(set, cut(chunk, rollout))
        return len(a & b) / len(a | b)

    def exact(chunk: str, rollout: str) -> float:
        a, b = cut(chunk, rollout)
        return float(a == b)

    def rouge(name: str) -> Callable[[str, str], float]:
        scorer = RougeScorer([name])
        return lambda chunk, rollout: scorer.score(chunk, rollout)[name].fmeasure

    def bleu(n: int) -> Callable[[str, str], float]:
        metric = BLEU(max_ngram_order=n, smooth_method="none", effective_order=True, tokenize="none", force=True)
        return lambda chunk, rollout: metric.sentence_score(chunk, [rollout]).score / 100

    return {
        "edit, Levenshtein in a loop": edit,
        "rouge1, Counter in a loop": rouge1,
        "rouge1, rouge-score": rouge("rouge1"),
        "rougeL, rouge-score": rouge("rougeL"),
        "jaccard, set in a loop": jaccard,
        "bleu1, sacrebleu": bleu(1),
        "bleu2, sacrebleu": bleu(2),
        "exact, == in a loop": exact,
    }


def compare_metrics(folder: Path, rows: int, repeats: int) -> None:
    """Each φ beside its references, in turn, so that what else the machine does hits both."""
    pool = texts()
    write_round(RunDir(folder), rows, pool)
    pairs = [(pool[0][i // ROLLOUTS_A_CHUNK], pool[1][i]) for i in range(2000)]
    loops = plain_loops()
    print(f"{rows:,} pairs of 50 words, {os.cpu_count()} cores; median of {repeats}")
    print(f"{'':32}{'pairs/s':>10}{'us CPU/pair':>13}{'rss MB':>9}{'times slower':>14}")
    for phi in METRICS:
        runs = []
        slower: dict[str, list[float]] = {name: [] for name in loops if name.startswith(f"{phi},")}
        for _ in range(repeats):
            runs.append(timed_stage(folder, phi))
            for name, times in slower.items():
                began = time.perf_counter()
                for chunk, rollout in pairs:
                    loops[name](chunk, rollout)
                times.append((time.perf_counter() - began) / len(pairs))
        rate, cpu = rows / median(run["s"] for run in runs), median(run["cpu_s"] for run in runs) / rows
        print(f"{'omniopd score, ' + phi:32}{rate:>10,.0f}{cpu * 1e6:>13.2f}{max(run['rss_mb'] for run in runs):>9.0f}")
        for name, times in slower.items():
            s = median(times)
            print(f"{'  ' + name:32}{1 / s:>10,.0f}{s * 1e6:>13.2f}{'':9}{s * rate:>13.0f}x")


def show_growth(folder: Path, sizes: list[int], phi: str) -> None:
    """Time and memory as the rows grow."""
    pool = texts()
    print(f"omniopd score, {phi}, {os.cpu_count()} cores")
    print(f"{'rollouts':>12}{'s':>9}{'us/rollout':>12}{'us CPU':>9}{'rollouts/s':>12}{'rss MB':>9}")
    for rows in sizes:
        target = folder / f"{rows}"
        write_round(RunDir(target), rows, pool)
        run = timed_stage(target, phi)
        shutil.rmtree(target)
        print(
            f"{rows:>12,}{run['s']:>9.1f}{run['s'] / rows * 1e6:>12.2f}{run['cpu_s'] / rows * 1e6:>9.2f}"
            f"{rows / run['s']:>12,.0f}{run['rss_mb']:>9.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200_000, help="Pairs of the comparison; 0: none.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, nargs="*", default=[1_000_000, 3_000_000, 10_000_000], help="Of growth.")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--phi", default="edit", help="Metric of --rows.")
    args = parser.parse_args()
    if args.child:
        child(args.child, args.phi)
        return
    with tempfile.TemporaryDirectory() as folder:
        if args.pairs:
            compare_metrics(Path(folder), args.pairs, args.repeats)
        if args.rows:
            show_growth(Path(folder), args.rows, args.phi)


if __name__ == "__main__":
    main()
