"""What makes a round of one arm cost what the same round of another did."""

import math

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
    prompt, response = (tokens * _teacher_tokens_a_token(reference) for tokens in _lengths(reference))
    if equal == "tokens":
        spend, read, write, cap = cost.tokens, prompt, response, f"tokens={cost.tokens}"
    else:
        rates = find_rates(config.teacher)
        spend, read, write = 1e6 * cost.usd, prompt * rates.input, response * rates.output
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


def _teacher_tokens_a_token(round_: RoundDir) -> float:
    """How many tokens of the teacher's a token of the student's is, by what the requests of a round were billed for."""
    rollouts = pl.DataFrame(round_.rollouts.read(["request_id", "prompt_tokens"]))
    prompts = pl.DataFrame(round_.trajectories.read(["trajectory_id", "prompt_ids"]))
    chunks = pl.DataFrame(round_.chunks.read(["trajectory_id", "start"])).join(prompts, on="trajectory_id")
    read = (chunks["prompt_ids"].list.len() + chunks["start"]).to_numpy().mean()
    return float(rollouts["prompt_tokens"].to_numpy().sum() / rollouts["request_id"].n_unique() / read)
