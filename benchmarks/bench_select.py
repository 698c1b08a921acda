"""Selection (Eq. 6-7) from Parquet list columns: 100,000 trajectories of 6,000 tokens in under a minute on 2 cores.

    python benchmarks/bench_select.py [trajectories]

Selection is find_chunks and priors over the batches that `omniopd audit` reads. Beside it, in the same run: reading the
columns alone, and the plain method (M passes over padded float64 arrays), as a ratio that does not depend on the load.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa

from omniopd.stages.audit.chunks import COLUMNS, _Lists, find_chunks, priors
from omniopd.store.schema import TRAJECTORIES
from omniopd.store.sections import SelectConfig
from omniopd.store.table import Table

TOKENS, VOCABULARY, PART = 6000, 152_000, 512
TARGET_TRAJECTORIES = 100_000
SELECT = SelectConfig()
STOP_IDS = frozenset({2})


def trajectories(count: int, rng: np.random.Generator) -> pa.Table:
    """Made-up rows: lengths around TOKENS, entropies with a few peaks."""
    lengths = rng.integers(TOKENS - 500, TOKENS + 500, count)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    total = int(lengths.sum())
    lists = {
        "prompt_ids": rng.integers(0, VOCABULARY, total, dtype=np.int32),
        "response_ids": rng.integers(0, VOCABULARY, total, dtype=np.int32),
        "logprobs": -rng.exponential(0.4, total).astype(np.float32),
        "entropies": rng.gamma(0.3, 1.0, total).astype(np.float32),
    }
    columns = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in lists.items()}
    columns["trajectory_id"] = pa.array([rng.bytes(16).hex() for _ in range(count)])
    columns["round"] = pa.array(np.zeros(count, np.int32))
    for field in TRAJECTORIES.schema:
        columns.setdefault(field.name, pa.nulls(count, field.type))
    return pa.table(columns)


def selected(batch: pa.RecordBatch, clean_V: np.ndarray) -> int:
    found = find_chunks(batch, SELECT, clean_V, STOP_IDS)
    priors(_Lists.of(batch["logprobs"]), found)
    return len(found.row)


def plain(batch: pa.RecordBatch, clean_V: np.ndarray) -> int:
    """One pass over all tokens for each peak, on float64 arrays padded from Python lists."""
    entropies = batch["entropies"].to_pylist()
    scores_BT = np.full((len(entropies), max(map(len, entropies))), -np.inf)
    clean_BT = np.zeros(scores_BT.shape, bool)
    for row, (values, ids) in enumerate(zip(entropies, batch["response_ids"].to_pylist(), strict=True)):
        scores_BT[row, : len(values)] = values
        clean_BT[row, : len(values)] = clean_V[ids]
    positions_T = np.arange(scores_BT.shape[1])
    starts_BT = np.maximum.accumulate(np.where(clean_BT, positions_T, 0), axis=1)
    for _ in range(SELECT.chunks):
        anchors_B = scores_BT.argmax(axis=1)
        starts_B = starts_BT[np.arange(len(anchors_B)), anchors_B]
        scores_BT[np.abs(starts_BT - starts_B[:, None]) < SELECT.chunk_tokens] = -np.inf
    return len(entropies) * SELECT.chunks


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def over_table(table: Table, work: Callable[[pa.RecordBatch], object]) -> None:
    """Each batch as it is read, on two threads (NumPy and Arrow leave the interpreter's lock)."""
    with ThreadPoolExecutor(2) as pool:
        waiting: list = []
        for batch in table.batches(PART, COLUMNS):
            waiting.append(pool.submit(work, batch))
            if len(waiting) > 2:
                waiting.pop(0).result()
        for future in waiting:
            future.result()


def batches(table: Table) -> Iterator[pa.RecordBatch]:
    return table.batches(PART, COLUMNS)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 4096
    rng = np.random.default_rng(0)
    clean_V = rng.random(VOCABULARY) < 0.9
    with tempfile.TemporaryDirectory() as folder:
        table = Table(Path(folder) / "trajectories", TRAJECTORIES)
        table.begin({})
        for first in range(0, count, PART):
            table.append(trajectories(min(PART, count - first), rng))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ratios = []
        for batch in list(batches(table))[:3]:
            ours, theirs = timed(lambda b=batch: selected(b, clean_V)), timed(lambda b=batch: plain(b, clean_V))
            ratios.append(theirs[1] / ours[1])
        after_plain = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read = timed(lambda: [None for _ in batches(table)])
        all_ = timed(lambda: over_table(table, lambda batch: selected(batch, clean_V)))
    scale = TARGET_TRAJECTORIES / count
    print(f"selection: {count} trajectories of {TOKENS} tokens, M = {SELECT.chunks}, C = {SELECT.chunk_tokens}")
    print(f"  plain method / ours, CPU: {median(ratios):.1f}x (median of {len(ratios)} batches of {PART})")
    print(f"  reading alone {read[0]:.1f} s, {read[1]:.1f} s CPU")
    print(f"  reading and selection {all_[0]:.1f} s, {all_[1]:.1f} s CPU")
    print(f"  at {TARGET_TRAJECTORIES} trajectories: {all_[0] * scale:.0f} s wall, {all_[1] * scale:.0f} s CPU")
    print(f"  peak memory {before / 1024:.0f} MiB before, {after_plain / 1024:.0f} MiB after")


if __name__ == "__main__":
    main()
