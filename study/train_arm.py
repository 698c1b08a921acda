"""One task: the rounds of an arm with a seed, and the evaluations of its policies. Nothing is done twice."""

import contextlib
from collections.abc import Callable
from typing import TextIO

from ..run import run_round
from ..store.config import Config
from ..store.errors import BudgetReached, OmniopdError
from .arms import REFERENCE
from .task import Task


def train_arm(task: Task) -> float:
    """Train and evaluate what is missing. Returns Pass@1 of the last round's policy.

    What the stages say goes to the run's logs/study.log.

    Raises:
        OmniopdError: as the stages; the problem begins with the arm and the seed.
    """
    task.run.logs.mkdir(parents=True, exist_ok=True)
    path = task.study.log(task.arm.folder, task.seed)
    with path.open("a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
        try:
            return _train_and_evaluate(task, log)
        except OmniopdError as error:
            raise type(error)(f"{task.arm.name}, seed {task.seed}: {error.problem}", error.hint) from error


def _train_and_evaluate(task: Task, log: TextIO) -> float:
    from .results import means_by_question

    def say(line: str) -> None:
        log.write(f"{line}\n")
        log.flush()

    config = task.run.config()
    task.run.record(config)
    if 0 in task.evaluated:
        _evaluate(task, 0, config)
    for index in range(task.rounds):
        if not task.run.round(index).policy.is_dir():
            overrides = [] if task.arm.equal is None else _equal(task, index, config)
            of_round = task.run.config(tuple(overrides))
            _borrow(task, index, of_round, say)
            try:
                run_round(task.run, index, of_round, overrides, say)
            except BudgetReached as reached:
                # A normal end: what was paid for is trained on. Without any rollout there is no policy, and no arm.
                if not task.run.round(index).policy.is_dir():
                    raise
                say(f"round {index}: {reached.problem}")
        if index + 1 in task.evaluated:
            _evaluate(task, index + 1, config)
    return float(means_by_question(task.evaluation(task.rounds), task.grader).mean())


def _borrow(task: Task, index: int, config: Config, say: Callable[[str], None]) -> None:
    from ..store.model import resolve_model, weights_hash
    from .borrow import borrow

    run = task.run
    # The reference arm's folder has the shortest name, and the most to lend.
    others = sorted(task.study.runs_of_seed(task.seed), key=lambda other: other.path.parent.name != REFERENCE)
    donors = [other.round(index) for other in others if other.path != run.path]
    policy = weights_hash(resolve_model(run.policy_for(index, config)))
    if names := borrow(run.round(index), config, policy, donors):
        say(f"round {index}: {', '.join(names)} taken over from another arm")


def _equal(task: Task, index: int, config: Config) -> list[str]:
    from .equal import equal_spend

    reference = task.study.run(REFERENCE, task.seed).round(index)
    return equal_spend(reference, config, task.arm.equal or "tokens", task.arm.more)


def _evaluate(task: Task, rounds: int, config: Config) -> None:
    """Evaluate the policy after some rounds, by [eval] of the run's own config."""
    from ..eval.settings import find_target
    from ..eval.stage import evaluate

    evaluate(find_target(str(task.run.path), rounds), config)
