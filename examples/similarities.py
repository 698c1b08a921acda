"""Which similarity suits a task? Weigh the same rollouts by several, without asking the teacher again, and compare.

    python examples/similarities.py runs/first
    python examples/similarities.py runs/first --setting score.phi=rouge1 --setting score.unit=digit

Each setting's weights stand in the table `all_scores` beside the others; the shards are left as the last one made them,
and the first is made again at the end.
"""

import argparse
import itertools
from pathlib import Path

import polars as pl

from omniopd import Run

DEFAULT = ["score.phi=edit", "score.phi=rouge1", "score.phi=exact"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--round", type=int, default=0)
    parser.add_argument("--setting", action="append")
    args = parser.parse_args()

    settings = args.setting or DEFAULT
    for setting in [*settings, settings[0]]:
        Run(args.run, [setting]).score(args.round)
    weights = (
        Run(args.run)
        .table("all_scores")
        .with_columns(setting=pl.format("{} on {}", "phi", "unit"))
        .pivot(on="setting", index="chunk_id", values="pi_teacher")
    )
    print(weights.drop("chunk_id").describe())
    print("rank correlation of the weights:")
    for a, b in itertools.combinations(sorted(set(weights.columns) - {"chunk_id"}), 2):
        print(f"  {a} and {b}: {weights.select(pl.corr(a, b, method='spearman')).item():.2f}")


if __name__ == "__main__":
    main()
