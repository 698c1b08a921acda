"""A run from Python (`Run`), and `omniopd run`: the four stages, round after round. Nothing is done twice."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from .store.config import Config, toml_value
from .store.errors import BudgetReached, MirrorError, OmniopdError, UsageError
from .store.layout import RunDir
from .store.worker import ALONE, Worker

if TYPE_CHECKING:
    import polars as pl

    from .eval.results import EvalResult
    from .view.card import Card
    from .view.status import Status


class Run:
    """A run directory, and what can be done with it: the commands of the same names, one method each.

        from omniopd import Run

        run = Run("runs/first", {"teacher.rollouts": 4})
        run.generate(), run.audit(), run.score(), run.train()   # round 0; or run.run(rounds=3)
        run.table("chunks").sort("anchor_entropy")

    All raise omniopd.store.errors.OmniopdError, with `problem`, `hint` and the command's `exit_code`.

    Args:
        path: The run's folder, with its config.toml (`omniopd init`).
        settings: Keys of the config and their values for this object, as --set gives them; or --set's own texts.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Mapping[str, Any] | Sequence[str] = ()) -> None:
        self.folder = RunDir(Path(path))
        self._overrides = _overrides(settings)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], settings: Mapping[str, Any] | Sequence[str] = (), *, recipe: str = ""
    ) -> "Run":
        """A new run directory with a commented config.toml, as `omniopd init` makes it.

        Args:
            settings: Keys that are set in it, such as {"student.model": "Qwen/Qwen3-1.7B"}; the others are comments. Or
                --set's own texts.
            recipe: A row of the paper's tables, or layers separated by commas (docs/recipes.md), below the settings.

        Raises:
            UsageError: there is a config.toml already, a file where a folder would have to be, or no such recipe.
            ConfigError: an unknown key, or a value out of range.
        """
        from .stages.generate.dataset import is_local
        from .store import recipes
        from .store.config import commented_toml, overridden

        run = cls(path)
        if run.folder.config_toml.exists():
            raise UsageError(f"{run.folder.config_toml} exists.", "Edit it, or choose another run directory.")
        values = overridden(recipes.recipe(recipe) if recipe else {}, _overrides(settings))
        for section, key, is_here in (("data", "prompts", is_local), ("student", "model", os.path.isdir)):
            value = values.get(section, {}).get(key)
            if isinstance(value, str) and is_here(value):
                values[section][key] = str(Path(value).absolute())  # commands are given from any folder
        try:
            run.folder.path.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise UsageError(f"{error.filename} is no folder.", "Choose another run directory.") from error
        run.folder.config_toml.write_text(commented_toml(values), encoding="utf-8")
        return run

    @property
    def config(self) -> Config:
        """config.toml with the settings on top; `config.of_round(k)` is what holds in a round."""
        return self.folder.config(tuple(self._overrides))

    @property
    def next_round(self) -> int:
        """The first round whose policy does not exist: what the stages work on unless told otherwise."""
        return max((round_.index for round_ in self.folder.rounds() if round_.policy.is_dir()), default=-1) + 1

    def generate(self, round_: int | None = None, *, worker: Worker = ALONE, check: bool = True) -> str:
        """Stage 1: sample the student. Returns a line about the trajectories.

        Args:
            round_: Which round; None: `next_round`.
            worker: The share that this process fills. The only worker starts others, by generate.processes.
            check: Look at the teacher first (`omniopd check`), which may refuse.
        """
        # One worker writes down what runs, so that several do not replace the same file.
        index, config = self._begin(round_, record=worker.index == 0)
        if config.cluster.on == "ray" and worker.count > 1:
            raise UsageError(
                "--shard and cluster.on = ray exclude each other.", "Leave out --shard: Ray deals out the shares."
            )
        before = self._looking(config, "generate", check and worker.index == 0)
        # One worker pushes, what the others have written so far too; the next stage pushes the rest.
        with self._watched(config) if worker.index == 0 else contextlib.nullcontext():
            return generate_stage(self.folder, index, config, before, worker)

    def audit(
        self, round_: int | None = None, *, follow: bool = False, retry_failed: bool = False, check: bool = True
    ) -> str:
        """Stage 2: ask the teacher about the chunks, under the budget. Returns a line about the rollouts.

        Args:
            follow: Begin while `generate` still writes.
            retry_failed: Ask once more for the rollouts that are recorded as failed.
        """
        from .stages.audit.stage import audit

        index, config = self._begin(round_)
        with self._watched(config):
            return audit(self.folder, index, config, follow, retry_failed, self._looking(config, "audit", check))

    def score(self, round_: int | None = None) -> str:
        """Stage 3: training sequences. Asks nobody. Returns a line about them."""
        from .stages.score.stage import score

        index, config = self._begin(round_)
        with self._watched(config):
            return score(self.folder, index, config)

    def train(self, round_: int | None = None) -> str:
        """Stage 4: train the policy, in processes of their own or on a cluster. Returns a line about it."""
        index, config = self._begin(round_)
        with self._watched(config):
            return train_stage(self.folder, index, config, self._overrides)

    def run(self, rounds: int | None = None, *, check: bool = True, say: Callable[[str], None] = print) -> Path:
        """All stages, round after round, resumed where they were stopped. Returns the folder of the last policy.

        Args:
            rounds: In all; None: run.rounds.
            say: Told a line a stage.
        """
        from .view.card import write_card

        overrides = self._overrides if rounds is None else [*self._overrides, f"run.rounds={rounds}"]
        config = Run(self.folder.path, overrides)._recorded()
        with self._watched(config), on_cluster(config):
            run_rounds(self.folder, config, overrides, say, check)
            say(write_card(self.folder, config))
        return self.folder.round(config.run.rounds - 1).policy

    def eval(self, benchmark: str = "", after: int | None = None) -> "EvalResult":
        """Measure the policy: what `omniopd eval` prints, as an object.

        Args:
            benchmark: A name or a file; "": eval.benchmark.
            after: After how many rounds; None: all that are trained, 0: the initial student.
        """
        from .eval.results import result
        from .eval.settings import eval_config, find_target, read_by_eval
        from .eval.stage import evaluate

        target = find_target(str(self.folder.path), after)
        chosen = [f"eval.benchmark={toml_value(benchmark)}"] if benchmark else []
        config = eval_config(target, [*read_by_eval(self._overrides), *chosen])
        with tracked(self.folder, config):
            folder, _ = evaluate(target, config)
        return result(folder)

    def status(self) -> "Status":
        """What `omniopd status --json` prints, as an object."""
        from .view.status import read_status

        return read_status(self.folder, self.config)

    def card(self, after: int | None = None) -> "Card":
        """What `omniopd card --json` prints, as an object.

        Args:
            after: After how many rounds; None: all that are trained.
        """
        from .view.card import read_card

        return read_card(self.folder, self.config, after)

    def table(self, name: str) -> "pl.DataFrame":
        """All rows of a table or view, of all rounds: trajectories, chunks, rollouts, chunks_scored and so on."""
        return self.sql(f'SELECT * FROM "{name}"')

    def sql(self, query: str) -> "pl.DataFrame":
        """What a statement of DuckDB's answers; it reads the run's tables and views, and nothing else."""
        import duckdb
        import polars as pl

        from .store.reader import open_reader, views
        from .view.sql import objection, unique

        with contextlib.closing(open_reader(self.folder)) as db:
            try:
                answer = db.sql(query).to_arrow_table()
                return cast("pl.DataFrame", pl.from_arrow(answer.rename_columns(unique(answer.column_names))))
            except duckdb.Error as error:
                names = ", ".join(name for name, _ in views(db))
                raise UsageError(objection(error), f"The tables and views are {names}.") from error

    def _recorded(self) -> Config:
        from .stages.audit.teachers.registry import check_kind

        config = self.config
        check_kind(config.teacher.kind)
        self.folder.record(config)
        return config

    def _begin(self, round_: int | None, *, record: bool = True) -> tuple[int, Config]:
        """Which round, and the config as it holds there."""
        config = self._recorded() if record else self.config
        index = self.next_round if round_ is None else round_
        return index, config.of_round(index)

    @contextlib.contextmanager
    def _watched(self, config: Config) -> Generator[None]:
        """A stage, with the run's trackers and its mirror told."""
        # The mirror last: what the trackers were told is in the run too.
        with mirrored(self.folder, config), tracked(self.folder, config):
            yield

    def _looking(self, config: Config, stage: Literal["generate", "audit"], check: bool) -> Callable[[], None]:
        from .check import require

        return functools.partial(require, self.folder, config, stage) if check else lambda: None


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
    from .stages.score.stage import score

    round_, config = run.round(index), config.of_round(index)
    if round_.policy.is_dir():
        say(f"round {index}: done")
        return
    reached: BudgetReached | None = None

    def before(stage: Literal["generate", "audit"]) -> Callable[[], None]:
        return functools.partial(require, run, config, stage) if check else lambda: None

    with mirrored(run, config), audit_beside(run, index, config, overrides):
        say(f"round {index} generate: {generate_stage(run, index, config, before('generate'))}")
    try:
        with mirrored(run, config):
            said = audit(run, index, config, before=before("audit"))
        say(f"round {index} audit:    {said}")
    except BudgetReached as error:
        if round_.rollouts.manifest.rows == 0:
            raise
        reached = error
        say(f"round {index} audit:    {error.problem} Going on with {round_.rollouts.manifest.rows} rollouts paid for")
    with mirrored(run, config):
        say(f"round {index} score:    {score(run, index, config)}")
    with mirrored(run, config):
        say(f"round {index} train:    {train_stage(run, index, config, overrides)}")
    if reached is not None:
        raise reached


@contextlib.contextmanager
def tracked(run: RunDir, config: Config) -> Generator[None]:
    """Around a command: tell run.trackers what comes about.

    Raises:
        InputError: a tracker is not installed, cannot be reached or wants a login.
    """
    if not config.run.trackers:
        yield
        return
    from .view.trackers.tracked import tracked

    with tracked(run, config):
        yield


@contextlib.contextmanager
def mirrored(run: RunDir, config: Config) -> Generator[None]:
    """Around a stage: refuse where run.mirror is another's before it begins, and push what there is when it ends.

    Raises:
        MirrorError: the mirror is another's, or cannot be reached. What the stage has written is in the run.
    """
    if config.run.mirror is None:
        yield
        return
    from .stages.progress import progress
    from .store.mirror.writer import mirror_of

    mirror = mirror_of(run, config)
    assert mirror is not None
    mirror.begin()
    shown = functools.partial(progress, "mirror")
    try:
        yield
    except MirrorError:
        raise
    except OmniopdError:  # what was paid for, say, before the budget ended
        mirror.push(shown)
        raise
    mirror.push(shown)


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


def on_cluster(config: Config) -> contextlib.AbstractContextManager[None]:
    """Stay connected to the cluster, if there is one to be, over several stages."""
    if config.cluster.on == "local":
        return contextlib.nullcontext()
    from .cluster.connection import connected

    return connected(config.cluster)


def generate_stage(run: RunDir, index: int, config: Config, before: Callable[[], None], worker: Worker = ALONE) -> str:
    """Generate a round, where the config says. Returns a line about it."""
    if config.cluster.on == "ray":
        from .cluster.generate import generate as generate_on_ray

        return generate_on_ray(run, index, config, before)
    from .stages.generate.stage import generate

    return generate(run, index, config, worker, before)


def _overrides(settings: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Settings as --set's texts."""
    if not isinstance(settings, Mapping):
        return list(settings)
    return [f"{key}={'none' if value is None else toml_value(value)}" for key, value in settings.items()]


def train_stage(run: RunDir, index: int, config: Config, overrides: Sequence[str]) -> str:
    """Train a round with a progress bar, where the config says. Returns a line about it."""
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

        if config.cluster.on == "ray":
            from .cluster.train import train as train_on_ray

            result = train_on_ray(run, index, config, show, lambda note: advance(0, note))
        else:
            result = launch(run, index, config, overrides, show)
    skipped = f", {result.skipped} skipped as not finite" if result.skipped else ""
    return f"{result.steps} steps{skipped}; policy in {result.policy}"
