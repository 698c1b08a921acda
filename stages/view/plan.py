"""`omniopd plan`: what a round will ask of the teacher, before a cent is spent (§9: M N C and M (P + L/2))."""

from dataclasses import dataclass

import numpy as np

from ...store.config import Config
from ...store.layout import RunDir
from ...store.policy import resolve_model
from ..audit.forecast import Forecast, Shape, continuations, forecast
from ..audit.price import find_rates
from ..audit.teacher import max_tokens_for
from ..generate.prompts import questions_of_round, read_questions, render
from ..student import load_tokenizer

_PROMPTS_READ = 512
"""Prompts tokenized to find their mean length."""


@dataclass(frozen=True)
class Plan:
    """What one round will need."""

    prompts: int
    trajectories: int
    prompt_length: float
    response_length: float
    measured: bool
    """Whether the response length was measured on an earlier round, or is the limit."""
    shape: Shape


def plan(run: RunDir, config: Config) -> Plan:
    """Predict one round.

    Raises:
        InputError: the prompts or the student cannot be used.
    """
    questions = questions_of_round(read_questions(config.data), config.data, 0)
    tokenizer = load_tokenizer(resolve_model(config.student.model))
    prompts = render(questions[:_PROMPTS_READ], config.data, tokenizer)
    prompt_length = float(np.mean([len(prompt.ids) for prompt in prompts]))
    measured = _measured_length(run)
    length = config.generate.max_new_tokens if measured is None else measured
    c = config.select.chunk_tokens
    m = min(config.select.chunks, max(1, int(length // c)))
    trajectories = len(questions) * config.generate.samples_per_prompt
    # Starts of M chunks lie evenly over the response, so the last one is at M / (M + 1) of it.
    shape = Shape(
        trajectories * m,
        round(trajectories * m * (prompt_length + length / 2)),
        round(trajectories * (prompt_length + length * m / (m + 1))),
        trajectories * m * max_tokens_for(config, c),
    )
    return Plan(len(questions), trajectories, prompt_length, length, measured is not None, shape)


def _measured_length(run: RunDir) -> float | None:
    for round_ in reversed(run.rounds()):
        table = round_.trajectories
        if table.complete:
            lengths = [len(ids) for ids in table.read(["response_ids"])["response_ids"].to_pylist()]
            return float(np.mean(lengths))
    return None


def forecasts(plan: Plan, config: Config) -> list[Forecast]:
    """Each mode that the teacher has, with each way to make it go on."""
    rates = find_rates(config.teacher)
    ways = continuations(config.teacher.kind, config.teacher.continuation)
    return [forecast(plan.shape, config, rates, mode, way) for mode in ("live", "batch") for way in ways]


def describe(plan: Plan, config: Config) -> str:
    """The plan in lines for people."""
    length = "measured" if plan.measured else "the limit: an upper bound until a round has been generated"
    most = "at most " if config.teacher.rollouts == "adaptive" else ""
    n = config.teacher.most_rollouts
    lines = [
        f"One round: {plan.prompts} prompts x {config.generate.samples_per_prompt} = {plan.trajectories} trajectories,"
        f" {plan.prompt_length:.0f} prompt tokens and {plan.response_length:.0f} response tokens each ({length})",
        f"  audited  {plan.shape.chunks:,} chunks of {config.select.chunk_tokens} tokens, {most}{n} rollouts each ="
        f" {plan.shape.chunks * n:,} rollouts",
        f"  {'mode, continuation':<20}{'requests':>12}{'prompt tokens':>18}{'cached, at best':>18}"
        f"{'output, at most':>18}{'USD':>22}",
    ]
    found = forecasts(plan, config)
    lines += map(_line, found)
    rates = find_rates(config.teacher)
    if rates.source == "unknown":
        lines.append("  prices   unknown: set teacher.price = { input = ..., output = ... } to see dollars")
    else:
        lines.append(f"  prices   {rates.source}; dollars are with the cache and without it, batches at half the price")
    lines.append(
        "  tokens   the student's; the teacher counts a little differently. Servers without n need a request a rollout"
    )
    rounds = config.run.rounds
    lines.append(
        f"{rounds} round{'s' if rounds > 1 else ''} in all. The hard caps are teacher.budget_usd and budget_tokens,"
        " and round_budget_usd and round_budget_tokens for each round."
    )
    return "\n".join(lines)


def _line(one: Forecast) -> str:
    if one.prices == "unknown":
        dollars = "?"
    elif one.usd == one.usd_uncached:
        dollars = f"{one.usd:,.2f}"
    else:
        dollars = f"{one.usd:,.2f} to {one.usd_uncached:,.2f}"
    return (
        f"  {f'{one.mode}, {one.continuation}':<20}{one.requests:>12,}{one.prompt_tokens:>18,}{one.cached_tokens:>18,}"
        f"{one.completion_tokens:>18,}{dollars:>22}"
    )
