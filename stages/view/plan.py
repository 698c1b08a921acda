"""`omniopd plan`: what a round will ask of the teacher, before a cent is spent (§9: M N C and M (P + L/2))."""

from dataclasses import dataclass

import numpy as np

from ...store.config import Config
from ...store.layout import RunDir
from ...store.ledger import NANO, Usage
from ...store.policy import resolve_model
from ..audit.price import Rates, find_rates
from ..audit.teacher import max_tokens_for
from ..generate.prompts import questions_of_round, read_questions, render
from ..student import load_tokenizer

_PROMPTS_READ = 512
"""Prompts tokenized to find their mean length."""


@dataclass(frozen=True)
class Plan:
    """What one round will need. Tokens are the student's tokenizer's; the teacher's count will differ a little."""

    prompts: int
    trajectories: int
    chunks: int
    rollouts: int
    prompt_length: float
    response_length: float
    measured: bool
    """Whether the response length was measured on an earlier round, or is the limit."""
    prompt_tokens: int
    """If a request for all rollouts of a chunk is billed for its prompt once."""
    prompt_tokens_each: int
    """If every rollout is billed for the prompt: teachers without `n`."""
    completion_tokens: int
    """At most: rollouts are asked for somewhat longer than a chunk."""

    def usd(self, rates: Rates, prompt_tokens: int) -> float:
        return rates.nusd(Usage(prompt_tokens, 0, self.completion_tokens)) / NANO


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
    chunks = trajectories * m
    rollouts = chunks * config.teacher.most_rollouts
    prefix_tokens = round(chunks * (prompt_length + length / 2))
    return Plan(
        len(questions), trajectories, chunks, rollouts, prompt_length, length, measured is not None,
        prefix_tokens, prefix_tokens * config.teacher.most_rollouts, rollouts * max_tokens_for(config, c),
    )  # fmt: skip


def _measured_length(run: RunDir) -> float | None:
    for round_ in reversed(run.rounds()):
        table = round_.trajectories
        if table.complete:
            lengths = [len(ids) for ids in table.read(["response_ids"])["response_ids"].to_pylist()]
            return float(np.mean(lengths))
    return None


def describe(plan: Plan, config: Config) -> str:
    """The plan in lines for people."""
    length = "measured" if plan.measured else "the limit: an upper bound until a round has been generated"
    lines = [
        f"One round: {plan.prompts} prompts x {config.generate.samples_per_prompt} = {plan.trajectories} trajectories,"
        f" {plan.prompt_length:.0f} prompt tokens and {plan.response_length:.0f} response tokens each ({length})",
        f"  audited  {plan.chunks:,} chunks of {config.select.chunk_tokens} tokens,"
        f" {config.teacher.most_rollouts} rollouts each = {plan.rollouts:,} rollouts",
        f"  prompt   {plan.prompt_tokens:,} teacher tokens where one request returns all rollouts of a chunk,"
        f" {plan.prompt_tokens_each:,} where it returns one",
        f"  output   {plan.completion_tokens:,} teacher tokens at most",
    ]
    rates = find_rates(config.teacher)
    if rates.source == "unknown":
        lines.append("  price    unknown: set teacher.price = { input = ..., output = ... } to see dollars")
    else:
        low, high = (plan.usd(rates, tokens) for tokens in (plan.prompt_tokens, plan.prompt_tokens_each))
        lines.append(f"  price    ${low:,.2f} to ${high:,.2f} without any caching ({rates.source})")
    rounds = config.run.rounds
    lines += [
        f"{rounds} round{'s' if rounds > 1 else ''} in all. The hard caps are teacher.budget_usd and budget_tokens,"
        " and round_budget_usd and round_budget_tokens for each round.",
    ]
    return "\n".join(lines)
