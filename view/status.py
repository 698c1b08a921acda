"""`omniopd status`: where every stage of every round stands, what it has cost, and how long it will take. Reading only.

`Status` is what `--json` prints. Programs rely on it: fields are added, none renamed, and `version` is raised when one
comes to mean something else. docs/reading-a-run.md describes it.
"""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from ..method.objectives.record import Answers
from ..method.objectives.registry import objective_of
from ..stages.audit.forecast import Forecast
from ..store.config import Config
from ..store.errors import TableError
from ..store.evals import evals_of_run
from ..store.files import read_json_lines
from ..store.journal import StageRun
from ..store.layout import STAGES, RoundDir, RunDir, Stage
from ..store.ledger import NANO
from ..store.ledger_read import Totals, read_forecast, read_price_sources, read_totals
from ..store.recipes import recipe
from ..store.table import Table
from . import quality, rates

ANSWERED = ("ok", "empty")
"""Statuses of a rollout that count as an answer of the teacher."""

State = Literal["missing", "partial", "running", "failed", "damaged", "done"]

Unit = Literal["trajectories", "rollouts", "sequences", "steps"]

_UNITS: dict[Stage, Unit] = {"generate": "trajectories", "audit": "rollouts", "score": "sequences", "train": "steps"}


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class StageStatus(_Model):
    """One stage of one round."""

    stage: Stage
    state: State
    """partial: begun, and nobody is at it; failed: its latest run ended with `error`; damaged: a file of its tables is
    not there or not whole, as `error` says."""
    unit: Unit
    done: int
    """Rows in the table, failed rollouts too, or optimizer steps."""
    expected: int | None
    """None where it is not known yet."""
    failed: int
    """Rollouts without an answer, or steps whose loss or gradient was not finite."""
    rate_per_s: float | None
    """Of the latest run, up to what it wrote last."""
    tokens_per_s: float | None = None
    """Of a stage that is running: tokens that the student samples (generate), that the teacher reads and writes (audit)
    and that are trained on (train)."""
    eta_s: float | None
    """Seconds left of a stage that is running."""
    seconds: float | None
    """Wall time of its latest run so far."""
    error: str | None
    waiting: str | None = None
    """What keeps a running stage from going on: slots that a cluster does not have now."""


class Spend(_Model):
    """What the teacher was asked for and what it cost."""

    usd: float
    budget_usd: float | None
    reserved_usd: float
    """For requests that are open now."""
    tokens: int
    """Prompt and completion tokens that count against the budget."""
    budget_tokens: int | None
    reserved_tokens: int
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    completion_tokens: int
    cache_share: float | None
    """Of the prompt tokens, read from the server's cache; None before the first."""
    requests: int
    unknown_requests: int
    """Sent, and no whole answer came back: charged in full."""
    check_requests: int
    """Of the requests: those of `omniopd check`, which leave no rollouts."""
    prices: list[str]
    """Whose prices the dollars are; "unknown" counts as free."""

    @property
    def priced(self) -> bool:
        """Whether the dollars say anything."""
        return self.prices not in ([], ["unknown"])


class RoundStatus(_Model):
    """One round."""

    round: int
    objective: str
    """What it learns from: train.objective, or that of run.schedule."""
    stages: list[StageStatus]
    spend: Spend
    outcomes: dict[str, int]
    """Rollouts by status: ok, empty, refused, filtered, failed."""
    cut_off: float | None
    """Share of the trajectories that ended at the limit; None where the student wrote none."""
    repetition: float | None
    """Mean of the trajectories' repetition; None where it was not measured."""
    distinct_rollouts: float | None
    """Different texts a chunk, on average over the chunks with two answers or more; None where there is none."""
    accepted: float | None
    """Share of the drafts' tokens that the policy accepted; None without drafts."""
    predicted: Forecast | None
    """What its audit was to cost, before the first request; None where none has begun."""


class Evaluation(_Model):
    """Pass@1 of the policy after some rounds, by the grader to quote, with its 95 % interval; shares from 0 to 1."""

    benchmark: str
    rounds: int
    """0 is the initial student."""
    grader: str
    answers: int
    pass_at_1: float
    low: float
    high: float

    @property
    def percent(self) -> str:
        """Pass@1 and its interval as people read them."""
        return f"{100 * self.pass_at_1:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


class Status(_Model):
    """A whole run."""

    version: Literal[1] = 1
    run: str
    time: datetime
    rounds_planned: int
    rounds: list[RoundStatus]
    spend: Spend
    outcomes: dict[str, int]
    eta_s: float | None
    """Seconds until the last planned round is trained; None while nothing runs, or nothing is known about a stage."""
    policy: str | None
    """Folder of the latest policy; None before the first round is trained."""
    evaluations: list[Evaluation]
    """Whole evaluations (omniopd eval), by rounds and benchmark."""
    next: str | None = None
    """The command that most people would give now; None while something runs, or is damaged."""


def read_status(run: RunDir, config: Config) -> Status:
    """The state of a run, from manifests, ledger, the stages' own records and a few small columns."""
    prices = read_price_sources(run.ledger)
    rounds = [_round_status(run, round_, config, prices) for round_ in run.rounds()]
    outcomes: Counter[str] = Counter()
    for round_ in rounds:
        outcomes.update(round_.outcomes)
    planned = max(config.run.rounds, len(rounds))
    status = Status(
        run=str(run.path), time=datetime.now(UTC), rounds_planned=planned, rounds=rounds,
        spend=_spend(prices, read_totals(run.ledger), config.teacher.budget_usd, config.teacher.budget_tokens),
        outcomes=dict(outcomes), eta_s=_eta(rounds, planned),
        policy=next((str(r.policy) for r in reversed(run.rounds()) if r.policy.is_dir()), None),
        evaluations=_evaluations(run),
    )  # fmt: skip
    return status.model_copy(update={"next": _next(status, config)})


def finished(status: Status) -> bool:
    """Whether every planned round is trained."""
    done = [all(stage.state == "done" for stage in round_.stages) for round_ in status.rounds]
    return len(done) >= status.rounds_planned and all(done)


def _evaluations(run: RunDir) -> list[Evaluation]:
    if not evals_of_run(run):
        return []
    from ..eval.results import accuracy_of_run  # brings in numpy

    return [
        Evaluation(benchmark=one.benchmark, rounds=one.rounds, grader=one.grader, answers=one.answers,
                   pass_at_1=one.pass_at_1.value, low=one.pass_at_1.low, high=one.pass_at_1.high)
        for one in accuracy_of_run(run)
    ]  # fmt: skip


def _next(status: Status, config: Config) -> str | None:
    # What is damaged has its way out beside it.
    if {"running", "damaged"} & {stage.state for round_ in status.rounds for stage in round_.stages}:
        return None
    run, trained = shlex.quote(status.run), len(status.rounds)
    if not finished(status):
        return f"omniopd run {run}"
    if all(one.rounds < trained for one in status.evaluations) and (option := _benchmark(status, config)) is not None:
        return f"omniopd eval {run}{option}"
    return f"omniopd export {run} {shlex.quote(f'{status.run}-after-{trained}')}"


def _benchmark(status: Status, config: Config) -> str | None:
    """The option that says what the policy is measured on, "" where the config does; None where nobody has said it: the
    benchmarks that we know are of other tasks than a user's own."""
    if config.eval.benchmark:
        return ""
    if status.evaluations:
        from ..eval.benchmarks import HUB  # brings in numpy

        measured = [one.benchmark for one in status.evaluations if one.benchmark in HUB]
        return f" --benchmark {measured[-1]}" if measured else None
    of_the_paper = recipe("dapo-math-17k")["data"]["prompts"]
    return " --benchmark math500" if config.data.prompts == of_the_paper else None


def _round_status(run: RunDir, round_: RoundDir, config: Config, prices: list[str]) -> RoundStatus:
    config = config.of_round(round_.index)
    teacher, damage = config.teacher, _damage(round_)
    statuses = Counter[str]()
    if "audit" not in damage:
        statuses.update(round_.rollouts.read(["status"])["status"].to_pylist())
    spend = _spend(prices, read_totals(run.ledger, round_.index), teacher.round_budget_usd, teacher.round_budget_tokens)
    stages = [
        damage.get("generate") or _with_tokens(sampled := _generate(round_), lambda: _sampled_per_s(sampled, round_)),
        damage.get("audit") or _with_tokens(_audit(round_, config, statuses), lambda: _answered_per_s(run, round_)),
        damage.get("score") or _score(round_, config, statuses, damage),
        _train(run, round_),
    ]
    cut_off, repetition = (None, None) if "generate" in damage else quality.of_student(round_)
    stages = [_waiting(stage, round_) for stage in stages]
    predicted = read_forecast(run.ledger, round_.index)
    return RoundStatus(
        round=round_.index, objective=config.train.objective, stages=stages,
        spend=spend, outcomes=dict(sorted(statuses.items())), cut_off=cut_off,
        repetition=repetition, distinct_rollouts=None if "audit" in damage else quality.distinct_rollouts(round_),
        accepted=None if "score" in damage else quality.accepted_share(round_),
        predicted=None if predicted is None else Forecast(**predicted),
    )  # fmt: skip


def _damage(round_: RoundDir) -> dict[Stage, StageStatus]:
    """The stages with a table whose manifest cannot be read, or of which a file is gone or too short."""
    tables: dict[Stage, tuple[Table, ...]] = {
        "generate": (round_.trajectories,),
        "audit": (round_.chunks, round_.rollouts),
        "score": (round_.drafts, round_.shards),
    }
    found: dict[Stage, StageStatus] = {}
    for stage, of_stage in tables.items():
        try:
            for table in of_stage:
                table.files()
        except TableError as error:
            again = round_.reset_command(stage)
            found[stage] = StageStatus(
                stage=stage, state="damaged", unit=_UNITS[stage], done=0, expected=None, failed=0, rate_per_s=None,
                eta_s=None, seconds=None, error=f"{error.problem} Restore it from a copy, or do it again: {again}",
            )  # fmt: skip
    return found


def _generate(round_: RoundDir) -> StageStatus:
    table, runs = round_.trajectories, round_.stage_runs("generate")
    known = [run.expected for run in runs if run.expected is not None]
    expected = table.manifest.rows if table.complete else max(known, default=None)
    return _of_table("generate", table, runs, expected, 0)


def _audit(round_: RoundDir, config: Config, statuses: Counter[str]) -> StageStatus:
    asks = config.score.weights == "teacher" and objective_of(config).asks != "nobody"
    # What its rows were made with: today's config may be another round's.
    manifest = round_.rollouts.manifest
    made = manifest.made_with if manifest.rows else {}
    most = made.get("teacher.rollouts", config.teacher.most_rollouts)
    most = made.get("teacher.max_rollouts", config.teacher.max_rollouts) if most == "adaptive" else most
    expected = round_.chunks.manifest.rows * most if asks or manifest.rows else 0
    failed = sum(count for status, count in statuses.items() if status not in ANSWERED)
    runs = round_.stage_runs("audit")
    return _of_table("audit", round_.rollouts, runs, expected if round_.chunks.complete else None, failed)


def _score(
    round_: RoundDir, config: Config, statuses: Counter[str], damage: Mapping[Stage, StageStatus]
) -> StageStatus:
    if damage:
        expected = None
    elif objective_of(config).weights_from == "drafts":
        # Which drafts have a token to learn is known once all are read.
        expected = round_.shards.manifest.rows if round_.shards.complete else None
    elif isinstance(objective_of(config).learns, Answers):
        expected = statuses["ok"] if round_.rollouts.complete else None
    else:
        expected = round_.trajectories.manifest.rows if round_.trajectories.complete else None
    return _of_table("score", round_.shards, round_.stage_runs("score"), expected, 0)


def _of_table(stage: Stage, table: Table, runs: list[StageRun], expected: int | None, failed: int) -> StageStatus:
    manifest = table.manifest
    latest = _latest(runs)
    rate = None if latest is None else rates.rows_per_s(manifest.parts, latest.started_at)
    state = _state(manifest.complete, manifest.rows > 0, runs)
    return _stage(stage, state, manifest.rows, expected, failed, rate, latest)


def _waiting(stage: StageStatus, round_: RoundDir) -> StageStatus:
    """A stage with what it waits for, if a command is at it that does."""
    if stage.state in ("done", "damaged") or (waiting := round_.waiting(stage.stage)) is None:
        return stage
    return stage.model_copy(update={"state": "running", "waiting": str(waiting), "eta_s": None, "error": None})


def _with_tokens(stage: StageStatus, tokens_per_s: Callable[[], float | None]) -> StageStatus:
    """A stage with the tokens that it comes to a second, if it is running."""
    return stage.model_copy(update={"tokens_per_s": tokens_per_s()}) if stage.state == "running" else stage


def _sampled_per_s(stage: StageStatus, round_: RoundDir) -> float | None:
    if not stage.rate_per_s or not stage.done:
        return None
    return stage.rate_per_s * rates.mean_length(round_.trajectories.files(), stage.done)


def _answered_per_s(run: RunDir, round_: RoundDir) -> float | None:
    latest = _latest(round_.stage_runs("audit"))
    return None if latest is None else rates.answered_tokens_per_s(run.ledger, round_.index, latest.started_at)


def _train(run: RunDir, round_: RoundDir) -> StageStatus:
    steps = read_json_lines(run.train_steps(round_.index))
    runs = round_.stage_runs("train")
    latest = _latest(runs)
    done = round_.policy.is_dir()
    expected = len(steps) if done else None if latest is None else latest.expected
    skipped = sum(bool(step["skipped"]) for step in steps)
    state = _state(done, bool(steps) or round_.checkpoint.is_dir(), runs)
    stage = _stage("train", state, len(steps), expected, skipped, rates.steps_per_s(steps), latest)
    return _with_tokens(stage, lambda: rates.trained_tokens_per_s(steps))


def _stage(
    stage: Stage, state: State, done: int, expected: int | None, failed: int, rate: float | None,
    latest: StageRun | None,
) -> StageStatus:  # fmt: skip
    left = None if expected is None else max(expected - done, 0)
    eta = left / rate if state == "running" and left is not None and rate else None
    seconds = None
    if latest is not None and latest.state != "killed":
        seconds = max((time.time() if latest.ended_at is None else latest.ended_at) - latest.started_at, 0.0)
    return StageStatus(
        stage=stage, state=state, unit=_UNITS[stage], done=done, expected=expected, failed=failed, rate_per_s=rate,
        eta_s=eta, seconds=seconds, error=latest.error if state == "failed" and latest is not None else None,
    )  # fmt: skip


def _latest(runs: list[StageRun]) -> StageRun | None:
    """The run that tells most: one that failed, else the last that began."""
    return max(runs, key=lambda run: (run.state == "failed", run.started_at), default=None)


def _state(complete: bool, begun: bool, runs: list[StageRun]) -> State:
    states = {run.state for run in runs}
    if complete:
        return "done"
    if "running" in states:
        return "running"
    if "failed" in states:
        return "failed"
    return "partial" if begun or "killed" in states else "missing"


def _spend(prices: list[str], totals: Totals, budget_usd: float | None, budget_tokens: int | None) -> Spend:
    return Spend(
        usd=totals.charged_nusd / NANO, budget_usd=budget_usd, reserved_usd=totals.reserved_nusd / NANO,
        tokens=totals.charged_tokens, budget_tokens=budget_tokens, reserved_tokens=totals.reserved_tokens,
        prompt_tokens=totals.prompt_tokens, cached_tokens=totals.cached_tokens,
        cache_write_tokens=totals.cache_write_tokens, completion_tokens=totals.completion_tokens,
        cache_share=totals.cached_tokens / totals.prompt_tokens if totals.prompt_tokens else None,
        requests=totals.requests, unknown_requests=totals.unknown, check_requests=totals.checks,
        prices=prices,
    )  # fmt: skip


def _eta(rounds: list[RoundStatus], planned: int) -> float | None:
    """What is left of the stage that runs, and for each stage that is to come what it took before, on average."""
    running = [stage for round_ in rounds for stage in round_.stages if stage.state == "running"]
    if len(running) != 1 or running[0].eta_s is None:
        return None
    took = {
        name: [s.seconds for r in rounds for s in r.stages if s.stage == name and s.state == "done" and s.seconds]
        for name in STAGES
    }
    to_come = Counter(s.stage for r in rounds for s in r.stages if s.state not in ("done", "running"))
    to_come.update(dict.fromkeys(STAGES, planned - len(rounds)))
    needed = [name for name in STAGES if to_come[name]]
    if not all(took[name] for name in needed):
        return None
    return running[0].eta_s + sum(to_come[name] * sum(took[name]) / len(took[name]) for name in needed)
