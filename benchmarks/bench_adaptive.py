"""Teacher calls that adaptive rollouts save at equal mean squared error of the weight.

    python benchmarks/bench_adaptive.py [--trajectories 96]

Populations of chunks are drawn from distributions, or sampled from the demo's teacher at T = 1 and, so that it is less
sure of itself, at T = 2. Error is that of Eq. 5 against the expected similarity μ; the fixed number of the same error
is interpolated. For the demo, μ is the mean of 40 rollouts that no rule has seen.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from omniopd.demo.run import settings
from omniopd.demo.tasks.sums import problems
from omniopd.demo.teacher.process import TeacherServer
from omniopd.method.stopping import Adaptive, stopping_rule
from omniopd.stages.audit.stage import audit
from omniopd.stages.generate.stage import generate
from omniopd.store.config import commented_toml
from omniopd.store.layout import RunDir

ALPHA = 1.0
CHUNKS = 4000
SHOWN = 20
"""Rollouts that a rule may see."""
TRUTH = 40


@dataclass(frozen=True)
class Population:
    """C chunks with R rollouts each."""

    name: str
    mu_C: Any
    phi_CR: Any
    prior_C: Any


def simulated() -> Iterator[Population]:
    chance = np.random.default_rng(0)
    prior_C = np.full(CHUNKS, 0.9)

    def beta(mu_C: Any, strength_C: Any) -> Any:
        a, b = mu_C * strength_C, (1 - mu_C) * strength_C
        return chance.beta(a[:, None], b[:, None], (CHUNKS, SHOWN))

    def two_modes(sure: float) -> Population:
        uncertain_C = chance.random(CHUNKS) > sure
        q_C = np.where(uncertain_C, chance.uniform(0.05, 0.95, CHUNKS), chance.random(CHUNKS) < 0.7)
        low_C = chance.uniform(0.3, 0.7, CHUNKS)
        phi_CR = np.where(chance.random((CHUNKS, SHOWN)) < q_C[:, None], 1.0, low_C[:, None])
        return Population(f"two continuations, {sure:.0%} of chunks sure", q_C + (1 - q_C) * low_C, phi_CR, prior_C)

    mu_C = chance.beta(6, 2, CHUNKS)
    yield Population("free text, all alike uncertain", mu_C, beta(mu_C, np.full(CHUNKS, 20.0)), prior_C)
    spread_C = np.where(chance.random(CHUNKS) < 0.5, 3.0, 300.0)
    yield Population("free text, half of it settled", mu_C, beta(mu_C, spread_C), prior_C)
    yield two_modes(0.8)
    yield two_modes(0.5)
    p_C = chance.beta(0.5, 0.5, CHUNKS)
    yield Population("exact match", p_C, (chance.random((CHUNKS, SHOWN)) < p_C[:, None]) * 1.0, prior_C)


def from_the_demo(folder: Path, trajectories: int, temperature: float) -> Population:
    """φ of the demo's teacher on the demo student's chunks."""
    run = RunDir(folder)
    folder.mkdir()
    prompts = folder / "prompts.jsonl"
    prompts.write_text(
        "".join(f'{{"question": "{p.question}"}}\n' for p in problems(trajectories, seed=0, split="train"))
    )
    with TeacherServer() as base_url:
        values = settings(prompts, 1, 0, base_url)
        values["data"]["per_round"] = trajectories
        values["teacher"] |= {"rollouts": SHOWN + TRUTH, "temperature": temperature}
        run.config_toml.write_text(commented_toml(values))
        config = run.config()
        generate(run, 0, config)
        audit(run, 0, config)
    rows = pl.DataFrame(run.round(0).rollouts.read(["chunk_id", "rollout_index", "text", "status"]))
    chunks = pl.DataFrame(run.round(0).chunks.read(["chunk_id", "chunk_text", "prior"]))
    rows = rows.join(chunks, on="chunk_id").sort("chunk_id", "rollout_index")
    rule = stopping_rule(run.config(("teacher.rollouts=adaptive",)))
    phi = rule.phi(rows["chunk_text"].to_list(), rows["text"].to_list())
    phi_CR = np.array(phi, dtype=np.float64).reshape(-1, SHOWN + TRUTH)
    priors = rows.unique("chunk_id").sort("chunk_id")["prior"].to_numpy()
    name = f"the demo's teacher, T = {temperature:g}"
    return Population(name, phi_CR[:, SHOWN:].mean(axis=1), phi_CR[:, :SHOWN], priors)


def weights(population: Population, n_C: Any) -> Any:
    """Eq. 5 from the first n rollouts of each chunk."""
    sums_CR = np.cumsum(population.phi_CR, axis=1)
    k_C = sums_CR[np.arange(len(n_C)), n_C - 1]
    return (k_C + ALPHA * population.prior_C) / (n_C + ALPHA)


def error(population: Population, n_C: Any) -> float:
    return float(np.mean((weights(population, n_C) - population.mu_C) ** 2))


def asked(rule: Adaptive, population: Population) -> Any:
    """How many rollouts the rule asks for, chunk by chunk."""
    counts: list[int] = []
    for phi_R, prior in zip(population.phi_CR.tolist(), population.prior_C.tolist(), strict=True):
        seen: dict[int, float | None] = {}
        while len(seen) < (wanted := rule.target_count(seen, prior)):
            seen = dict(enumerate(phi_R[:wanted]))
        counts.append(len(seen))
    return np.array(counts)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trajectories", type=int, default=96)
    count = parser.parse_args().trajectories
    with tempfile.TemporaryDirectory() as folder:
        demo = [from_the_demo(Path(folder, str(t)), count, t) for t in (1.0, 2.0)]
    heading = (
        f"{'chunks':<42}{'most':>5}{'precision':>10}{'calls':>7}{'MSE':>10}{'fixed N of that MSE':>21}{'saved':>8}"
    )
    print(heading + f"{'at N = most':>13}{'bias':>9}")
    for population in (*simulated(), *demo):
        size = len(population.mu_C)
        fixed = np.array([error(population, np.full(size, n)) for n in range(1, SHOWN + 1)])
        for most, precision in ((10, 0.07), (10, 0.1), (20, 0.05), (20, 0.07), (20, 0.1)):
            rule = Adaptive(most, precision, ALPHA, lambda chunks, texts: [])
            n_C = asked(rule, population)
            mse = error(population, n_C)
            equal = float(np.interp(-mse, -np.minimum.accumulate(fixed), np.arange(1, SHOWN + 1)))
            bias = float(np.mean(weights(population, n_C) - population.mu_C))
            print(
                f"{population.name:<42}{most:>5}{precision:>10}{n_C.mean():>7.2f}{mse:>10.5f}{equal:>21.2f}"
                f"{1 - n_C.mean() / equal:>8.1%}{fixed[most - 1]:>13.5f}{bias:>+9.4f}"
            )


if __name__ == "__main__":
    sys.exit(main())
