"""What makes a round of one arm cost what the same round of another did."""

import math

import numpy as np
import polars as pl

from ..stages.audit.price import find_rates
from ..stages.generate.stage import samples_of
from ..store.config import Config
from ..store.layout import RoundDir
from .arms import Equal, More
from .results import spent


def equal_spend(reference: RoundDir, config: Config, equal: Equal, more: More) -> list[str]:
    """Overrides of a config: a hard cap on the round, and as much work as it covers.

    That is as many prompts as are paid for at a whole response each, or as many answers to each prompt; rounded up, so
    that the cap is what ends the round. Where every round takes all prompts there are no more of them.

    Args:
        reference: The round whose spend is matched.
        config: Of the arm.
    """
    cost = spent(reference)
    prompt, response = _lengths(reference)
    own, a_token = _teacher_tokens(reference)
    read, write = own + a_token * prompt, a_token * response
    if equal == "tokens":
        spend, cap = cost.tokens, f"tokens={cost.tokens}"
    else:
        rates = find_rates(config.teacher)
        spend, read, write = 1e6 * cost.usd, read * rates.input, write * rates.output
        cap = f"usd={cost.usd}"
    if more == "answers" or config.data.per_round is None:
        wanted = "teacher.rollouts", (spend / reference.trajectories.manifest.rows - read) / write
    else:
        wanted = "data.per_round", spend / (read + write * config.teacher.most_rollouts) / samples_of(config)
    key, number = wanted
    return [f"{key}={max(1, math.ceil(number))}", f"teacher.round_budget_{cap}"]


def _lengths(round_: RoundDir) -> tuple[float, float]:
    """Mean lengths of prompts and responses in student tokens."""
    frame = pl.DataFrame(round_.trajectories.read(["prompt_ids", "response_ids"]))
    prompt, response = (float(frame[name].list.len().to_numpy().mean()) for name in frame.columns)
    return prompt, response


def _teacher_tokens(round_: RoundDir) -> tuple[float, float]:
    """What the teacher reads at each request by itself (a system prompt of its server's), and how many of its tokens a
    token of the student's is: the line through what the requests of a round were billed for."""
    rollouts = pl.DataFrame(round_.rollouts.read(["chunk_id", "request_id", "prompt_tokens"]))
    prompts = pl.DataFrame(round_.trajectories.read(["trajectory_id", "prompt_ids"]))
    chunks = pl.DataFrame(round_.chunks.read(["chunk_id", "trajectory_id", "start"])).join(prompts, on="trajectory_id")
    billed = rollouts.group_by("chunk_id", "request_id").agg(pl.col("prompt_tokens").sum())
    requests = billed.join(chunks, on="chunk_id")
    read = (requests["prompt_ids"].list.len() + requests["start"]).to_numpy().astype(float)
    return fit_line(read, requests["prompt_tokens"].to_numpy().astype(float))


def fit_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The intercept, not below 0, and the slope of least squares; a mere ratio where x hardly varies.

    Args:
        x: Positive.
    """
    spread = ((x - x.mean()) ** 2).sum()
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 0.0
    intercept = float(y.mean() - slope * x.mean())
    return (intercept, slope) if slope > 0 and intercept > 0 else (0.0, float(y.mean() / x.mean()))
