"""`omniopd study compare | ablation | sensitivity`: many runs side by side, each an ordinary run directory.

A task is one arm with one seed: its rounds, and the evaluation of its policy. Tasks of a seed share what they can
(study/borrow.py), so the reference arm of a seed goes first. Whatever is already there is not done again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..store.config import Config
from ..store.errors import UsageError
from ..store.studies import StudyDir
from .arms import Arm, Choice, Equal, Kind
from .pool import train_all
from .task import Task, write_config

Say = Callable[[str], None]


@dataclass(frozen=True)
class StudyOptions:
    """The options of the command. How arms are evaluated, and for how many rounds they train, is in the config."""

    seeds: int = 5
    jobs: int = 1
    """Tasks at a time, each in a process."""
    curve: bool = False
    """Evaluate after every round, and not only after the last one."""
    equal: Equal = "tokens"


def run_study(study: StudyDir, kind: Kind, base: Config, choice: Choice, options: StudyOptions, say: Say) -> str:
    """Train all arms for run.rounds rounds and evaluate them as [eval] says. Returns the table.

    Raises:
        UsageError: no such benchmark or grader; equal dollars of a teacher without a price.
        ConfigError: an arm's config is out of range.
        ConfigChangedError: an arm was begun under another config.
        BusyError: another study is running here.
        OmniopdError: as the stages.
    """
    arms, missing = choice
    _check_teacher(base, arms)
    base, benchmark = _with_one_grader(base)
    with study.lock():
        tasks = [
            Task(study, base, arm, seed, benchmark, options.curve) for seed in range(options.seeds) for arm in arms
        ]
        for task in tasks:
            write_config(task)
        for one in missing:
            say(f"without {one.name}: {one.reason}")
        say(
            f"{len(arms)} arms x {options.seeds} seeds x {base.run.rounds} rounds;"
            " what they say is in their logs/study.log"
        )
        train_all(tasks, options.jobs, _counted(say, len(tasks)))
        # Lazy: a spawned worker imports what the main module imports, and needs no Altair.
        from .report import write_report

        return write_report(study, kind, choice, tasks, options.equal)


def _check_teacher(base: Config, arms: Sequence[Arm]) -> None:
    """Refuse a teacher that would be noticed only after hours."""
    from ..stages.audit.price import find_rates
    from ..stages.audit.teachers.registry import check_kind

    check_kind(base.teacher.kind)
    if any(arm.equal == "usd" for arm in arms) and find_rates(base.teacher).source == "unknown":
        raise UsageError("--equal usd needs a price of the teacher.", "Set teacher.price, or use --equal tokens.")


def _with_one_grader(base: Config) -> tuple[Config, str]:
    """The config with one grader, the first that it names or that fits the benchmark; and the benchmark's name."""
    from ..eval.benchmarks import load_benchmark
    from ..eval.stage import choose_graders

    if not base.eval.benchmark:
        raise UsageError("No benchmark to evaluate the arms on.", "Add --benchmark, or set eval.benchmark.")
    benchmark = load_benchmark(base.eval.benchmark)
    grader = choose_graders(base.eval.graders, benchmark)[0]
    one = base.eval.model_copy(update={"graders": (grader,)})
    return base.model_copy(update={"eval": one}), benchmark.name


def _counted(say: Say, total: int) -> Callable[[Task, float], None]:
    """Says how far the study is after each task."""
    start, done = time.monotonic(), 0

    def count(task: Task, pass_at_1: float) -> None:
        nonlocal done
        done += 1
        minutes = (time.monotonic() - start) / 60
        say(
            f"[{done}/{total}] {task.arm.name}, seed {task.seed}: Pass@1 {100 * pass_at_1:.1f}"
            f" after {task.rounds} rounds; {minutes:.1f} min, {minutes / done * (total - done):.1f} left"
        )

    return count
