"""`omniopd plan`: what a round will ask of the teacher and of the GPUs, before a cent is spent.

The teacher's part of OmniOPD is §9's M N C and M (P + L/2).
"""

from dataclasses import dataclass, replace

import numpy as np

from ..method.objectives.record import Answers
from ..method.objectives.registry import objective_of
from ..stages.audit.draft_length import draft_tokens
from ..stages.audit.forecast import Forecast, Shape, continuations, forecast
from ..stages.audit.price import find_rates
from ..stages.audit.teacher import max_tokens_for
from ..stages.generate.prompts import questions_of_round, read_questions, render
from ..stages.generate.stage import samples_of
from ..store.architecture import check_config_json
from ..store.config import Config
from ..store.layout import RunDir
from ..store.model import load_tokenizer, resolve_model
from .plan_memory import Memory, memory_of, told

_PROMPTS_READ = 512
"""Prompts tokenized to find their mean length."""


@dataclass(frozen=True)
class Student:
    """What the GPUs have to do, in student tokens."""

    generated: int
    """Sampled by the student."""
    trained: int
    """Read forwards and backwards, prompts and every epoch counted."""
    steps: int
    """Optimizer steps."""
    frozen: str
    """Whose weights read the trained tokens too, forwards only: "the initial student", a teacher's name, or ""."""


@dataclass(frozen=True)
class Plan:
    """What one round will need."""

    prompts: int
    trajectories: int
    prompt_length: float
    length: float
    """Of a response; of the teacher's answer where it is asked for whole ones."""
    measured: bool
    """Whether that length was measured on an earlier round, or is the limit."""
    shape: Shape | None
    """None where no teacher is asked."""
    student: Student
    memory: Memory | None = None
    """None where the model beside the student is not here, nor its config.json on the hub."""


def plan(run: RunDir, config: Config) -> Plan:
    """Predict one round.

    Raises:
        InputError: the prompts or the student cannot be used.
    """
    questions = questions_of_round(read_questions(config.data, run.path), config.data, 0)
    folder = resolve_model(config.student.model)
    arch = check_config_json(folder)
    tokenizer = load_tokenizer(folder)
    prompts = render(questions[:_PROMPTS_READ], config.data, tokenizer)
    lengths = [len(prompt.ids) for prompt in prompts]
    prompt_length = float(np.mean(lengths))
    measured = _measured_answer(run) if objective_of(config).asks == "answers" else _measured_response(run)
    paying = draft_tokens(run, len(run.rounds()), config)
    predicted = predict(config, len(questions), prompt_length, measured, paying)
    longest = min(max(lengths) + _limit(config), arch.positions)
    return replace(predicted, memory=memory_of(config, arch, longest))


def predict(
    config: Config, prompts: int, prompt_length: float, measured: float | None, paying: int | None = None
) -> Plan:
    """Predict a round of so many prompts. Pure.

    Args:
        prompt_length: mean, student tokens.
        measured: mean length of a response, or of the teacher's answer, where it is known; else the limit counts.
        paying: length of a draft that pays, where that is known.
    """
    objective = objective_of(config)
    answers = objective.asks == "answers"
    length = _limit(config) if measured is None else measured
    trajectories = prompts * samples_of(config)
    shape = None
    if answers:
        # The whole prompt is the prefix, and the whole answer what is asked for.
        read = round(trajectories * prompt_length)
        shape = Shape(trajectories, read, read, round(trajectories * length))
    elif objective.asks == "chunks" and config.score.weights == "teacher":
        shape = _chunks(config, trajectories, prompt_length, length, paying)
    sequences = trajectories * (config.teacher.most_rollouts if isinstance(objective.learns, Answers) else 1)
    generated = round(trajectories * length) if objective.samples_student else 0
    student = _student(config, generated, sequences, prompt_length + length)
    return Plan(prompts, trajectories, prompt_length, length, measured is not None, shape, student)


def _limit(config: Config) -> int:
    """Most tokens of a response, or of the teacher's answer where that is trained on."""
    answers = objective_of(config).asks == "answers"
    return max_tokens_for(config, 0) if answers else config.generate.max_new_tokens


def _chunks(config: Config, trajectories: int, prompt_length: float, length: float, paying: int | None) -> Shape:
    c = config.select.chunk_tokens
    m = min(config.select.chunks, max(1, int(length // c)))
    # Starts of M chunks lie evenly over the response: chunk i begins at i / (M + 1) of it.
    kept = 1 if config.select.keep == "earliest" else m
    return Shape(
        trajectories * kept,
        round(trajectories * kept * (prompt_length + length * (kept + 1) / 2 / (m + 1))),
        round(trajectories * (prompt_length + length * kept / (m + 1))),
        trajectories * kept * max_tokens_for(config, c, paying),
    )


def _student(config: Config, generated: int, sequences: int, length: float) -> Student:
    train = config.train
    steps = train.epochs * -(-sequences // train.global_batch)
    trained = train.epochs * sequences
    if train.steps is not None and train.steps < steps:
        steps, trained = train.steps, min(trained, train.steps * train.global_batch)
    model = objective_of(config).frozen_model(train)
    frozen = "" if model is None else {"initial": "the initial student", "teacher": train.teacher}[model]
    return Student(generated, round(trained * length), steps, frozen)


def _measured_response(run: RunDir) -> float | None:
    for round_ in reversed(run.rounds()):
        table = round_.trajectories
        if table.complete:
            lengths = [len(ids) for ids in table.read(["response_ids"])["response_ids"].to_pylist()]
            return float(np.mean(lengths))
    return None


def _measured_answer(run: RunDir) -> float | None:
    """Mean tokens of the teacher's whole answers in the last round that has any."""
    for round_ in reversed(run.rounds()):
        table = round_.rollouts
        if table.complete:
            rows = table.read(["status", "completion_tokens"]).to_pylist()
            tokens = [row["completion_tokens"] for row in rows if row["status"] == "ok"]
            if tokens:
                return float(np.mean(tokens))
    return None


def forecasts(plan: Plan, config: Config) -> list[Forecast]:
    """Each mode that the teacher has, with each way to make it go on; none where it is not asked."""
    if plan.shape is None:
        return []
    rates = find_rates(config.teacher)
    if objective_of(config).asks == "answers":
        # Nothing is continued, so no way to do it costs more than another.
        answers = [forecast(plan.shape, config, rates, mode, "completion") for mode in ("live", "batch")]
        return [replace(one, continuation="answer") for one in answers]
    ways = continuations(config.teacher.kind, config.teacher.continuation)
    return [forecast(plan.shape, config, rates, mode, way) for mode in ("live", "batch") for way in ways]


def describe(plan: Plan, config: Config) -> str:
    """The plan in lines for people."""
    rounds = config.run.rounds
    in_all = f"{rounds} round{'s' if rounds > 1 else ''} in all."
    if plan.shape is not None:
        in_all += (
            " The hard caps are teacher.budget_usd and budget_tokens, and round_budget_usd and round_budget_tokens for"
            " each round."
        )
    lines = [_size(plan, config), *_teacher(plan, config), _gpus(plan.student), *told(plan.memory, config), in_all]
    return "\n".join(lines)


def _size(plan: Plan, config: Config) -> str:
    answers = objective_of(config).asks == "answers"
    what, stage = ("answer", "audited") if answers else ("response", "generated")
    length = "measured" if plan.measured else f"the limit: an upper bound until a round has been {stage}"
    return (
        f"One round: {plan.prompts} prompts x {samples_of(config)} = {plan.trajectories} trajectories,"
        f" {plan.prompt_length:.0f} prompt tokens and {plan.length:.0f} {what} tokens each ({length})"
    )


def _teacher(plan: Plan, config: Config) -> list[str]:
    if plan.shape is None:
        return ["  teacher  is not asked"]
    most = "at most " if config.teacher.rollouts == "adaptive" else ""
    n = config.teacher.most_rollouts
    if objective_of(config).asks == "answers":
        asked = f"  answers  {most}{n} for each of {plan.shape.chunks:,} trajectories = {plan.shape.chunks * n:,}"
    elif objective_of(config).weights_from == "drafts":
        longest = plan.shape.max_tokens // max(1, plan.shape.chunks)
        asked = f"  drafts   {n} of at most {longest} tokens at each of {plan.shape.chunks:,} forks"
    else:
        asked = (
            f"  audited  {plan.shape.chunks:,} chunks of {config.select.chunk_tokens} tokens, {most}{n} rollouts each ="
            f" {plan.shape.chunks * n:,} rollouts"
        )
    rates = find_rates(config.teacher)
    if rates.source == "unknown":
        prices = "  prices   unknown: set teacher.price = { input = ..., output = ... } to see dollars"
    else:
        prices = f"  prices   {rates.source}; dollars are with the cache and without it, batches at half the price"
    return [
        asked,
        f"  {'mode, continuation':<20}{'requests':>12}{'prompt tokens':>18}{'cached, at best':>18}"
        f"{'output, at most':>18}{'USD':>22}",
        *map(_line, forecasts(plan, config)),
        prices,
        "  tokens   the student's; the teacher counts a little differently. Servers without n need a request a rollout",
    ]


def _gpus(student: Student) -> str:
    written = f"{student.generated:,} tokens are generated; " if student.generated else ""
    steps = f"{student.steps:,} step{'s' if student.steps > 1 else ''}"
    frozen = f", and {student.frozen} reads as many in the trainer" if student.frozen else ""
    return f"  student  {written}{student.trained:,} are trained on in {steps}, prompts included{frozen}"


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
