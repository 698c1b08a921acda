"""Table 3 as a picture. Needs matplotlib: the extra `plot`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Error and correlation of both estimators over N, a column for each φ, with 95 % bands."""
    names = list(dict.fromkeys(row["phi"] for row in rows))
    figure = Figure(figsize=(2.4 * len(names), 5), layout="constrained")
    grid = figure.subplots(2, len(names), sharex=True, sharey="row", squeeze=False)
    for column, name in enumerate(names):
        of = [row for row in rows if row["phi"] == name]
        n = [row["n"] for row in of]
        for axes, what in zip(grid[:, column], ("mse", "corr"), strict=True):
            for estimator, label in (("freq", "frequentist"), ("bayes", "Bayesian")):
                key = f"{what}_{estimator}"
                axes.plot(n, [row[key] for row in of], marker="o", markersize=3, label=label)
                axes.fill_between(n, [row[f"{key}_low"] for row in of], [row[f"{key}_high"] for row in of], alpha=0.2)
            axes.set_xscale("log")
        grid[0, column].set_title(name)
        grid[1, column].set_xlabel("rollouts N")
    grid[0, 0].set_ylabel("mean squared error")
    grid[1, 0].set_ylabel("Pearson correlation")
    grid[0, 0].legend(fontsize="small")
    figure.savefig(path, dpi=120)
    return path
