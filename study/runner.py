"""`omniopd study compare | ablation | sensitivity`: many runs side by side, each an ordinary run directory.

A task is one arm with one seed: its rounds, and the evaluation of its policy. Tasks of a seed share what they can
(study/borrow.py), so the reference arm of a seed goes first. Whatever is already there is not done again.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from typing import Any, TextIO

from ..run import run_round
from ..store.config import Config, commented_toml, config_of, made_with
from ..store.errors import BudgetReached, ConfigChangedError, OmniopdError, UsageError
from ..store.evals import EvalDir, eval_of_run
from ..store.layout import RunDir
from ..store.schema import TABLES
from ..store.sections import EvalConfig
from ..store.studies import StudyDir
from .arms import REFERENCE, Arm, Choice, Equal, Kind, arm_values

Say = Callable[[str], None]


@dataclass(frozen=True)
class StudyOptions:
    """The options of the command."""

    benchmark: str
    seeds: int = 5
    rounds: int | None = None
    """None: run.rounds of the config."""
    samples: int = 1
    max_new_tokens: int | None = None
    """None: generate.max_new_tokens of the config."""
    temperature: float = 1.0
    grader: str = "math_verify"
    equal: Equal = "tokens"
    jobs: int = 1
    curve: bool = False
    """Evaluate after every round, and not only after the last one."""


@dataclass(frozen=True)
class _Task:
    """One arm with one seed. It travels to a worker process."""

    study: StudyDir
    base: Config
    arm: Arm
    seed: int
    rounds: int
    options: StudyOptions
    benchmark: str
    """Name of what options.benchmark holds."""

    @property
    def run(self) -> RunDir:
        return self.study.run(self.arm.folder, self.seed)

    @property
    def evaluated(self) -> list[int]:
        """After how many rounds. The initial student is the same for all arms, and evaluated once a seed."""
        first = 0 if self.arm.name == REFERENCE else 1
        return [k for k in range(first, self.rounds + 1) if self.options.curve or k in (0, self.rounds)]

    def evaluation(self, rounds: int) -> EvalDir:
        return eval_of_run(self.run, rounds, self.benchmark)


def run_study(study: StudyDir, kind: Kind, base: Config, choice: Choice, options: StudyOptions, say: Say) -> str:
    """Train and evaluate all arms. Returns the table.

    Raises:
        UsageError: no such benchmark or grader; equal dollars of a teacher without a price.
        ConfigError: an arm's config is out of range.
        ConfigChangedError: an arm was begun under another config or benchmark.
        BusyError: another study is running here.
        OmniopdError: as the stages.
    """
    arms, missing = choice
    rounds = options.rounds or base.run.rounds
    benchmark = _check(base, arms, options)
    with study.lock():
        tasks = [
            _Task(study, base, arm, seed, rounds, options, benchmark) for seed in range(options.seeds) for arm in arms
        ]
        for task in tasks:
            _write_config(task)
        for one in missing:
            say(f"without {one.name}: {one.reason}")
        say(f"{len(arms)} arms x {options.seeds} seeds x {rounds} rounds; what they say is in their logs/study.log")
        _run_all(tasks, options.jobs, _counted(say, len(tasks)))
        return _report(study, kind, base, choice, tasks)


def _check(base: Config, arms: Sequence[Arm], options: StudyOptions) -> str:
    """What would be noticed only after hours. Returns the benchmark's name."""
    from ..eval.benchmarks import load_benchmark
    from ..eval.settings import check_settings
    from ..eval.stage import choose_graders
    from ..stages.audit.price import find_rates
    from ..stages.audit.teachers.registry import check_kind

    check_settings(_eval_section(base, options))
    benchmark = load_benchmark(options.benchmark)
    choose_graders((options.grader,), benchmark)
    check_kind(base.teacher.kind)
    if any(arm.equal == "usd" for arm in arms) and find_rates(base.teacher).source == "unknown":
        raise UsageError("--equal usd needs a price of the teacher.", "Set teacher.price, or use --equal tokens.")
    return benchmark.name


def _write_config(task: _Task) -> None:
    """The arm's config.toml: the base's with the changes. It follows the base until something was made of it."""
    values = arm_values(task.base, task.arm, task.seed, task.rounds)
    config = config_of(values, f"It is the arm {task.arm.name!r}: mend the grid, or {task.study.base.config_toml}.")
    run = task.run
    if run.config_toml.is_file() and any(round_.trajectories.manifest.parts for round_ in run.rounds()):
        before, now = (_made_with_all(one) for one in (run.config(), config))
        if changed := [key for key in {**before, **now} if before.get(key) != now.get(key)]:
            raise ConfigChangedError(
                f"The study's config changed under {run.path}: {', '.join(changed)}.",
                f"Set it back, or begin another study: omniopd init {task.study.path}-2.",
            )
    run.path.mkdir(parents=True, exist_ok=True)
    run.config_toml.write_text(commented_toml(values), encoding="utf-8")


def _made_with_all(config: Config) -> dict[str, Any]:
    """All settings that determine the content of some table or of the policy."""
    return {key: value for table in (*TABLES, "policy") for key, value in made_with(config, table).items()}


def _counted(say: Say, total: int) -> Callable[[_Task, float], None]:
    """Says how far the study is after each task."""
    start, done = time.monotonic(), 0

    def count(task: _Task, pass_at_1: float) -> None:
        nonlocal done
        done += 1
        minutes = (time.monotonic() - start) / 60
        say(
            f"[{done}/{total}] {task.arm.name}, seed {task.seed}: Pass@1 {100 * pass_at_1:.1f}"
            f" after {task.rounds} rounds; {minutes:.1f} min, {minutes / done * (total - done):.1f} left"
        )

    return count


# -- one task


def _run_task(task: _Task) -> float:
    """Train and evaluate. Returns Pass@1 of the last round's policy."""
    run = task.run
    run.logs.mkdir(parents=True, exist_ok=True)
    path = task.study.log(task.arm.folder, task.seed)
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        try:
            return _train_and_evaluate(task, log)
        except OmniopdError as error:
            raise type(error)(f"{task.arm.name}, seed {task.seed}: {error.problem}", error.hint) from error


def _train_and_evaluate(task: _Task, log: TextIO) -> float:
    from .results import means_by_question

    def say(line: str) -> None:
        log.write(f"{line}\n")
        log.flush()

    config = task.run.config()
    task.run.record(config)
    if 0 in task.evaluated:
        _evaluate(task, 0)
    for index in range(task.rounds):
        if not task.run.round(index).policy.is_dir():
            _borrow(task, index, config, say)
            overrides = _equal_budget(task, index)
            try:
                run_round(task.run, index, task.run.config(tuple(overrides)), overrides, say)
            except BudgetReached as reached:
                # A normal end: what was paid for is trained on. Without any rollout there is no policy, and no arm.
                if not task.run.round(index).policy.is_dir():
                    raise
                say(f"round {index}: {reached.problem}")
        if index + 1 in task.evaluated:
            _evaluate(task, index + 1)
    return float(means_by_question(task.evaluation(task.rounds), task.options.grader).mean())


def _borrow(task: _Task, index: int, config: Config, say: Say) -> None:
    from ..store.model import resolve_model, weights_hash
    from .borrow import borrow

    run = task.run
    # The reference arm's folder has the shortest name, and the most to lend.
    others = sorted(task.study.runs_of_seed(task.seed), key=lambda other: other.path.parent.name != REFERENCE)
    donors = [other.round(index) for other in others if other.path != run.path]
    policy = weights_hash(resolve_model(run.policy_for(index, config)))
    if names := borrow(run.round(index), config, policy, donors):
        say(f"round {index}: {', '.join(names)} taken over from another arm")


def _equal_budget(task: _Task, index: int) -> list[str]:
    """What makes a round cost as much as the reference arm's: a hard cap, and as many whole answers to each prompt as
    it covers (rounded up, so that the cap is what ends it)."""
    if task.arm.equal is None:
        return []
    from ..stages.audit.price import find_rates
    from .results import lengths, spent

    reference = task.study.run(REFERENCE, task.seed).round(index)
    cost = spent(reference)
    prompts, prompt, response = lengths(reference)
    if task.arm.equal == "tokens":
        answers, cap = (cost.tokens / prompts - prompt) / response, f"tokens={cost.tokens}"
    else:
        rates = find_rates(task.base.teacher)
        answers = (1e6 * cost.usd / prompts - prompt * rates.input) / (response * rates.output)
        cap = f"usd={cost.usd}"
    return [f"teacher.rollouts={max(1, math.ceil(answers))}", f"teacher.round_budget_{cap}"]


def _evaluate(task: _Task, rounds: int) -> None:
    from ..eval.settings import find_target
    from ..eval.stage import evaluate

    # The seed of the sampling is the task's: the arms of a seed answer from the same random numbers.
    settings = _eval_section(task.base, task.options).model_copy(update={"seed": task.seed})
    config = task.run.config().model_copy(update={"eval": settings})
    evaluate(find_target(str(task.run.path), rounds), config)


def _eval_section(base: Config, options: StudyOptions) -> EvalConfig:
    return EvalConfig.model_validate(
        {
            "benchmark": options.benchmark,
            "samples": options.samples,
            "max_new_tokens": options.max_new_tokens or base.generate.max_new_tokens,
            "temperature": options.temperature,
            "graders": (options.grader,),
        }
    )


# -- all tasks


def _run_all(tasks: Sequence[_Task], jobs: int, done: Callable[[_Task, float], None]) -> None:
    first = [task for task in tasks if task.arm.name == REFERENCE]
    rest = [task for task in tasks if task.arm.name != REFERENCE]
    if jobs == 1:
        for task in [*first, *rest]:
            done(task, _run_task(task))
        return
    # torch is not imported here, so the workers' threads are still to be decided.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, initializer=_start_worker) as pool:
        try:
            running: dict[Future[float], _Task] = {pool.submit(_run_in_worker, task): task for task in first}
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    task = running.pop(future)
                    done(task, future.result())
                    if task.arm.name == REFERENCE:
                        freed = [other for other in rest if other.seed == task.seed]
                        running.update((pool.submit(_run_in_worker, other), other) for other in freed)
        except BaseException:
            # What runs comes to the end of its task; after Ctrl-C it was interrupted as this process was.
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker() -> None:
    """A worker ends with whoever started it, even one that was killed, and Ctrl-C is for its task alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run_in_worker(task: _Task) -> float:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _run_task(task)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# -- the report


def _report(study: StudyDir, kind: Kind, base: Config, choice: Choice, tasks: Sequence[_Task]) -> str:
    import pyarrow as pa

    from .plot import plot
    from .results import row
    from .table import markdown, summarise

    table = study.results(kind)
    rows = list(_rows(tasks, row))
    options = tasks[0].options
    parts = [pa.Table.from_pylist(rows, schema=table.spec.schema)]
    table.replace(parts, {"benchmark": options.benchmark, "grader": options.grader, "samples": options.samples})
    lines = summarise(rows, {(task.arm.name, task.seed): _means(task, task.rounds) for task in tasks}, _before(tasks))
    text = markdown(kind, lines, choice, rows, options.equal)
    path = study.path / f"{kind}.md"
    path.write_text(text, encoding="utf-8")
    picture = plot(kind, lines, rows, choice[0], base, study.path / f"{kind}.png")
    return f"{text}\n{path}, {picture}, {table.folder}"


def _rows(tasks: Sequence[_Task], row: Callable[..., dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for task in tasks:
        for rounds in task.evaluated:
            folder = task.evaluation(rounds)
            yield row(task.study.path, task.run, task.arm, task.seed, rounds, folder, task.options.grader)


def _means(task: _Task, rounds: int) -> Any:
    from .results import means_by_question

    return means_by_question(task.evaluation(rounds), task.options.grader)


def _before(tasks: Sequence[_Task]) -> dict[int, Any]:
    return {task.seed: _means(task, 0) for task in tasks if task.arm.name == REFERENCE}
