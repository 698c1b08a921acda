"""Micro-batches by a budget of tokens beside micro-batches by a count: passes, padding, memory, balance.

    python benchmarks/bench_micro_tokens.py

Global batches of 64 sequences of mixed lengths, at most 20,480 tokens and padded to multiples of 256 as on a GPU; the
mean of five draws. The budget is the smallest with no more passes than the count.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from omniopd.train.share import Share, deal

LONGEST = 20_480
TABLES: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "log-normal, mean 5,700": lambda rng: np.minimum(LONGEST, rng.lognormal(8.4, 0.7, 64)).astype(int),
    "log-normal, wide": lambda rng: np.minimum(LONGEST, rng.lognormal(8.1, 1.0, 64)).astype(int),
    "48 of 200-800, 16 of 8,000-20,480": lambda rng: np.concatenate(
        [rng.integers(200, 800, 48), rng.integers(8000, LONGEST + 1, 16)]
    ),
}


@dataclass
class Cut:
    """What a way to cut a global batch comes to."""

    passes: int
    padded: int
    """Positions that hold no token."""
    largest: int
    """Positions of the largest micro-batch."""
    busiest: float
    """Positions of the busiest rank, over the mean."""


def cut(lengths: np.ndarray, share: Share, micro_batch: int, micro_tokens: int | None) -> Cut:
    dealt = deal(lengths, np.arange(len(lengths)), share, micro_batch=micro_batch, micro_tokens=micro_tokens)
    sizes = [
        [len(batch) * share.padded(max(1 if n is None else int(lengths[n]) for n in batch)) for batch in part]
        for part in dealt
    ]
    work = [sum(part) for part in sizes]
    return Cut(
        len(sizes[0]), sum(work) - int(lengths.sum()), max(map(max, sizes)), float(max(work) / np.mean(work))
    )  # fmt: skip


def main() -> None:
    print("table | ranks | count | passes | padding % | largest | busiest; the last four by tokens; padding's ratio")
    for name, draw in TABLES.items():
        for ranks in (2, 8):
            share = Share(ranks=ranks, bucket=256)
            for count in (2, 4):
                pairs: list[tuple[Cut, Cut, float]] = []
                for seed in range(5):
                    lengths = draw(np.random.default_rng(seed))
                    by_count = cut(lengths, share, count, None)
                    budget = share.padded(int(lengths.max()))
                    while (by_tokens := cut(lengths, share, count, budget)).passes > by_count.passes:
                        budget += 256
                    pairs.append((by_count, by_tokens, float(lengths.sum())))
                columns = [
                    f"{np.mean([pair[i].passes for pair in pairs]):.1f}"
                    f" | {100 * np.mean([pair[i].padded / pair[2] for pair in pairs]):.1f}"
                    f" | {np.mean([pair[i].largest for pair in pairs]):,.0f}"
                    f" | {np.mean([pair[i].busiest for pair in pairs]):.2f}"
                    for i in (0, 1)
                ]
                ratio = sum(pair[1].padded for pair in pairs) / sum(pair[0].padded for pair in pairs)
                print(f"{name} | {ranks} | {count} | {columns[0]} | {columns[1]} | {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
