"""`omniopd run`: the four stages, round after round. Whatever is already there is not done again."""

from collections.abc import Callable, Sequence
from typing import Any

from .store.config import Config
from .store.errors import BudgetReached
from .store.layout import RunDir


def run_rounds(run: RunDir, config: Config, overrides: Sequence[str], say: Callable[[str], None]) -> None:
    """Drive `run.rounds` rounds; each starts from the policy that the one before trained.

    Raises:
        BudgetReached: after the round that it interrupted was scored and trained with the rollouts that were paid for.
    """
    for index in range(config.run.rounds):
        run_round(run, index, config, overrides, say)


def run_round(run: RunDir, index: int, config: Config, overrides: Sequence[str], say: Callable[[str], None]) -> None:
    """One round: generate, audit, score, train."""
    from .stages.audit.stage import audit
    from .stages.generate.stage import generate
    from .stages.score.stage import score

    round_ = run.round(index)
    if round_.policy.is_dir():
        say(f"round {index}: done")
        return
    reached: BudgetReached | None = None
    say(f"round {index} generate: {generate(run, index, config)}")
    try:
        say(f"round {index} audit:    {audit(run, index, config)}")
    except BudgetReached as error:
        if round_.rollouts.manifest.rows == 0:
            raise
        reached = error
        say(f"round {index} audit:    {error.problem} Going on with {round_.rollouts.manifest.rows} rollouts paid for")
    say(f"round {index} score:    {score(run, index, config)}")
    say(f"round {index} train:    {train_stage(run, index, config, overrides)}")
    if reached is not None:
        raise reached


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
