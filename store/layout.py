"""Where things are in a run directory. Importing it is cheap: pydantic, like Arrow, comes with what needs it."""

import contextlib
import os
import shlex
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import commits, files
from .errors import without_credentials
from .schema import CHUNKS, DRAFTS, REWARDS, ROLLOUTS, SCORES, SHARDS, TRAJECTORIES, TableSpec
from .table import Table
from .worker import ALONE, Worker

if TYPE_CHECKING:
    from .config import Config
    from .journal import StageRun, Waiting
    from .sections import ScoreConfig

Stage = Literal["generate", "audit", "score", "train"]

STAGES: tuple[Stage, ...] = ("generate", "audit", "score", "train")
"""In the order in which they run."""

_PATIENCE_S = 10.0
"""How long a worker waits for others that are starting."""


@dataclass(frozen=True)
class RoundDir:
    """One round of a run: its tables, the trainer's checkpoint and the policy that came out of it."""

    run: Path
    index: int

    @property
    def path(self) -> Path:
        return self.run / f"round={self.index:03d}"

    @property
    def trajectories(self) -> Table:
        return self.trajectories_of(ALONE)

    def trajectories_of(self, worker: Worker) -> Table:
        """The trajectories, to be written as one worker of them."""
        return Table(self.path / "trajectories", TRAJECTORIES, worker, self.reset_command("generate"))

    @property
    def chunks(self) -> Table:
        return Table(self.path / "chunks", CHUNKS, again=self.reset_command("audit"))

    @property
    def rollouts(self) -> Table:
        return Table(self.path / "rollouts", ROLLOUTS, again=self.reset_command("audit"))

    @property
    def kept(self) -> Path:
        """What was paid for and taken back by `omniopd reset`: a folder each time, with tables as they were."""
        return self.path / "kept"

    @property
    def paid_rollouts(self) -> list[Table]:
        """The rollouts, and those that were set aside."""
        return [self.rollouts, *(Table(path, ROLLOUTS) for path in sorted(self.kept.glob("*/rollouts")))]

    @property
    def scores(self) -> Table:
        """The scores that the shards were made of; empty until there are shards."""
        return Table(self.path / "scores" / self.shards.manifest.made_with.get("scores", ""), SCORES)

    def scores_of(self, score: "ScoreConfig") -> Table:
        """The scores under one phi, unit and alpha: a folder each, so that they stand side by side."""
        return Table(self.path / "scores" / f"{score.phi}-{score.unit}-alpha={score.alpha}", SCORES)

    @property
    def all_scores(self) -> list[Table]:
        """The scores under every setting that was tried."""
        return [Table(folder, SCORES) for folder in commits.tables_in(self.path / "scores")]

    def study(self, name: str, spec: TableSpec) -> Table:
        """What `omniopd study` found out about the round."""
        return Table(self.path / "study" / name, spec)

    @property
    def rewards(self) -> Table:
        return Table(self.path / "rewards", REWARDS)

    @property
    def drafts(self) -> Table:
        return Table(self.path / "drafts", DRAFTS)

    @property
    def shards(self) -> Table:
        return Table(self.path / "shards", SHARDS)

    @property
    def tables(self) -> tuple[Table, ...]:
        """In the order in which the stages write them."""
        return (self.trajectories, self.chunks, self.rollouts, self.scores, self.rewards, self.drafts, self.shards)

    @property
    def policy(self) -> Path:
        """HF folder that the round's training wrote; it exists only when it is whole."""
        return self.path / "policy"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    def lock(
        self, stage: str, worker: Worker = ALONE, patience_s: float = 0.0
    ) -> contextlib.AbstractContextManager[None]:
        """Keep a second process from running the same stage of this round.

        Workers of one count run side by side, each once. A worker that is alone, or of another count, would do the same
        rows again, so it is kept out while they run.

        Args:
            patience_s: How long to wait for a process that holds it.
        """
        return _recorded_lock(self.path, stage, worker, patience_s)

    def idle(self, stage: str) -> contextlib.AbstractContextManager[None]:
        """Keep every process from running a stage of this round, without a record of a run."""
        return _stage_lock(self.path, stage, ALONE, 0.0)

    def reset_command(self, stage: Stage) -> str:
        """What takes the round back to before a stage, as a shell takes it."""
        return f"omniopd reset {shlex.quote(str(self.run))} --round {self.index} --from {stage}"

    def expect(self, stage: str, rows: int, worker: Worker = ALONE) -> None:
        """Say, while holding the lock, how many rows or steps the stage comes to in all, in whatever workers."""
        from . import journal

        journal.expect(_journal_of(self.path, stage, worker), rows)

    def wait(self, stage: str, have: int, need: int) -> None:
        """Write down how many slots of a cluster there are for a stage, so that `status` can say that it waits."""
        from . import journal

        self.path.mkdir(parents=True, exist_ok=True)
        journal.write_waiting(self._waiting(stage), have, need)

    def waiting(self, stage: str) -> "Waiting | None":
        """What a stage waits for; None where it does not."""
        from . import journal

        return journal.read_waiting(self._waiting(stage))

    def _waiting(self, stage: str) -> Path:
        return self.path / f".{stage}.waiting.json"

    def stage_runs(self, stage: str) -> "list[StageRun]":
        """The latest run of a stage, or of each of its workers; [] where none was recorded."""
        from .journal import read_stage_run

        paths = sorted(self.path.glob(f".{stage}.*run.json"))
        runs = [(Worker.of_file(path.name).count, run) for path in paths if (run := read_stage_run(path)) is not None]
        # The stage may have been run before in more or fewer workers.
        count, _ = max(runs, key=lambda pair: pair[1].started_at, default=(1, None))
        return [run for workers, run in runs if workers == count]


@contextlib.contextmanager
def _stage_lock(folder: Path, stage: str, worker: Worker, patience_s: float) -> Generator[None]:
    what = f"`{stage}` on {folder}"
    with contextlib.ExitStack() as held:
        # Workers hold this one only while they look around, so a worker waits for it a little.
        gate = held.enter_context(contextlib.ExitStack())
        patience = max(patience_s, 0.0 if worker.count == 1 else _PATIENCE_S)
        gate.enter_context(files.exclusive(folder / f".{stage}.lock", what, patience))
        for path in folder.glob(f".{stage}.shard-*.lock"):
            if (other := Worker.of_file(path.name)).count != worker.count:
                with files.exclusive(path, f"shard {other} of {what}", patience_s):
                    pass
        if worker.count > 1:
            own = folder / f".{stage}{worker.suffix}.lock"
            held.enter_context(files.exclusive(own, f"shard {worker} of {what}", patience_s))
            gate.close()
        yield


@contextlib.contextmanager
def _recorded_lock(folder: Path, stage: str, worker: Worker, patience_s: float) -> Generator[None]:
    from . import journal

    def content() -> list[bytes | None]:
        tables = sorted({path.parent for path in folder.rglob("manifest*.json")})
        return [commit.content for path in tables for commit in commits.newest(path).values()] + sorted(
            os.fsencode(path) for path in (folder / "policy").glob("*")
        )

    with _stage_lock(folder, stage, worker, patience_s), journal.recorded(_journal_of(folder, stage, worker), content):
        yield


def _journal_of(folder: Path, stage: str, worker: Worker) -> Path:
    return folder / f".{stage}{worker.suffix}.run.json"


@dataclass(frozen=True)
class RunDir:
    """A run directory."""

    path: Path

    @property
    def config_toml(self) -> Path:
        return self.path / "config.toml"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def checked(self) -> Path:
        """Which settings of the teacher have passed `omniopd check`."""
        return self.path / ".checked.json"

    @property
    def resolved_config(self) -> Path:
        """What ran last, with every default and override."""
        return self.path / "config.resolved.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    def train_steps(self, index: int) -> Path:
        """JSON lines, one appended after every optimizer step of a round."""
        return self.metrics / f"train-round={index:03d}.jsonl"

    def train_metrics(self, index: int) -> Path:
        """Folder of the table that these lines become once the round is trained."""
        return self.metrics / f"train-round={index:03d}"

    def tracked(self, tracker: str) -> Path:
        """What a tracker (run.trackers) was told already."""
        return self.metrics / "trackers" / f"{tracker}.json"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def train_log(self, index: int) -> Path:
        """What the trainer processes of a round print."""
        return self.logs / f"train-round={index:03d}.log"

    def generate_log(self, index: int) -> Path:
        """What the processes that sample a round print, where there are several."""
        return self.logs / f"generate-round={index:03d}.log"

    @property
    def ray(self) -> Path:
        """What Ray and those that run on it leave for each other."""
        return self.path / ".ray"

    @property
    def ray_log(self) -> Path:
        """What Ray prints while it works on the run."""
        return self.logs / "ray.log"

    @property
    def spill(self) -> Path:
        """Where DuckDB puts what does not fit into memory."""
        return self.path / ".spill"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def card(self) -> Path:
        return self.path / "card.md"

    def round(self, index: int) -> RoundDir:
        return RoundDir(self.path, index)

    def rounds(self) -> list[RoundDir]:
        """The rounds that exist, in order."""
        folders = sorted(self.path.glob("round=[0-9][0-9][0-9]"))
        return [self.round(int(folder.name.removeprefix("round="))) for folder in folders]

    def config(self, overrides: tuple[str, ...] = ()) -> "Config":
        """What the user wrote in config.toml, with overrides on top."""
        from .config import load_config

        return load_config(self.config_toml, overrides)

    def record(self, config: "Config") -> None:
        """Write down what actually runs. Keys are never in the config, only the names of their variables; a password in
        an address is left out."""
        files.write_text(self.resolved_config, without_credentials(config.model_dump_json(indent=1)) + "\n")

    def policy_for(self, index: int, config: "Config") -> str:
        """Model that samples round `index`: the initial student, then what the round before trained."""
        return config.student.model if index == 0 else str(self.round(index - 1).policy)
