"""`omniopd run`: the four stages, round after round. Whatever is already there is not done again."""

import contextlib
import functools
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from typing import Any, Literal

from .store.config import Config
from .store.errors import BudgetReached
from .store.layout import RunDir


def run_rounds(
    run: RunDir, config: Config, overrides: Sequence[str], say: Callable[[str], None], check: bool = False
) -> None:
    """Drive `run.rounds` rounds; each starts from the policy that the one before trained.

    Args:
        check: Look at the teacher first (`omniopd check`).

    Raises:
        BudgetReached: after the round that it interrupted was scored and trained with the rollouts that were paid for.
    """
    for index in range(config.run.rounds):
        run_round(run, index, config, overrides, say, check)


def run_round(
    run: RunDir, index: int, config: Config, overrides: Sequence[str], say: Callable[[str], None], check: bool = False
) -> None:
    """One round: generate, audit, score, train."""
    from .check import require
    from .stages.audit.stage import audit
    from .stages.generate.stage import generate
    from .stages.score.stage import score

    round_, config = run.round(index), config.of_round(index)
    if round_.policy.is_dir():
        say(f"round {index}: done")
        return
    reached: BudgetReached | None = None

    def before(stage: Literal["generate", "audit"]) -> Callable[[], None]:
        return functools.partial(require, run, config, stage) if check else lambda: None

    with audit_beside(run, index, config, overrides):
        say(f"round {index} generate: {generate(run, index, config, before=before('generate'))}")
    try:
        say(f"round {index} audit:    {audit(run, index, config, before=before('audit'))}")
    except BudgetReached as error:
        if round_.rollouts.manifest.rows == 0:
            raise
        reached = error
        say(f"round {index} audit:    {error.problem} Going on with {round_.rollouts.manifest.rows} rollouts paid for")
    say(f"round {index} score:    {score(run, index, config)}")
    say(f"round {index} train:    {train_stage(run, index, config, overrides)}")
    if reached is not None:
        raise reached


@contextlib.contextmanager
def audit_beside(run: RunDir, index: int, config: Config, overrides: Sequence[str]) -> Generator[None]:
    """While the block generates, `audit --follow` in a process of its own, if the config says so. What it leaves (its
    teacher may have gone away) is left to the audit after it, which also says what is wrong."""
    if not config.run.overlap or run.round(index).trajectories.complete:
        yield
        return
    settings = [word for override in overrides for word in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "omniopd",
        "audit",
        str(run.path),
        "--round",
        str(index),
        "--follow",
        "--no-check",
        *settings,
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as follower:
        try:
            yield
        except BaseException:
            follower.send_signal(signal.SIGINT)
            raise


def train_stage(run: RunDir, index: int, config: Config, overrides: Sequence[str]) -> str:
    """Train a round with a progress bar. Returns a line about it."""
    from .stages.progress import progress
    from .train.launch import launch
    from .train.result import count_steps

    total = count_steps(run.round(index).shards.manifest.rows, config.train)
    with progress("train", total) as advance:
        shown = 0

        def show(done: int, _: int, metrics: dict[str, Any]) -> None:
            nonlocal shown
            advance(done - shown, f"loss {metrics['loss']:.4f}")
            shown = done

        result = launch(run, index, config, overrides, show)
    skipped = f", {result.skipped} skipped as not finite" if result.skipped else ""
    return f"{result.steps} steps{skipped}; policy in {result.policy}"
