# pyright: strict, reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
"""A round taken back to before one of its stages. What was paid for is set aside, unless it is to go too.

The ledger is left alone: what was spent stays spent.
"""

import contextlib
import json
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from . import commits, files
from .errors import InputError, TableError
from .layout import STAGES, RoundDir, RunDir, Stage
from .ledger import NANO, Ledger
from .ledger_read import read_batches, read_outbox_size, read_totals

_OUTBOX_ROWS = 4096


@dataclass(frozen=True)
class Reset:
    """What a reset takes away from a round."""

    run: RunDir
    round_: RoundDir
    stages: tuple[Stage, ...]
    """The one that it begins with and all behind it."""
    discard_paid: bool
    folders: tuple[Path, ...]
    """What there is of these stages, the last to be written first."""
    kept: tuple[Path, ...]
    """Those of them that are set aside: the tables without which rollouts cannot be read, and at last the rollouts. As
    long as these are in their place, a reset that was killed sets the others aside too when it goes on."""
    paid: str
    """What the rollouts have cost; empty where there are none."""

    def __str__(self) -> str:
        lines = [f"round {self.round_.index}, from {self.stages[0]} on:"]
        for folder in reversed(self.folders):
            fate = "set aside" if folder in self.kept else "deleted"
            bill = f", paid for with {self.paid}" if folder == self.round_.rollouts.folder and self.paid else ""
            lines.append(f"  {folder.relative_to(self.run.path)}: {_rows(folder)}{fate}{bill}")
        return "\n".join(lines)


def plan_reset(run: RunDir, index: int, first: Stage, *, discard_paid: bool) -> Reset:
    """What would go. Changes nothing.

    Raises:
        InputError: the round is not there, has nothing from that stage on, or a later round rests on it.
        TableError: batches of the round are still with the provider.
    """
    round_ = run.round(index)
    if not round_.path.is_dir():
        raise InputError(f"{run.path} has no round {index}.", f"See its rounds with `omniopd status {_quoted(run)}`.")
    later = max((other.index for other in run.rounds() if other.index > index and _begun(other)), default=None)
    if later is not None:
        command = run.round(later).reset_command("generate")
        raise InputError(f"Round {later} rests on the policy of round {index}.", f"Take it back first: `{command}`.")
    stages = STAGES[STAGES.index(first) :]
    folders = tuple(path for stage in reversed(stages) for path in _written(run, round_, stage) if path.exists())
    if not folders:
        raise InputError(f"Round {index} has nothing from {first} on.", f"Run `omniopd {first} {_quoted(run)}`.")
    if "audit" not in stages:
        return Reset(run, round_, stages, discard_paid, folders, (), "")
    _refuse_open_batches(run, index)
    paid = _paid(run, round_)
    tables = (round_.trajectories, round_.chunks, round_.rollouts)
    kept = tuple(table.folder for table in tables if table.folder in folders) if paid and not discard_paid else ()
    return Reset(run, round_, stages, discard_paid, folders, kept, paid)


def carry_out(reset: Reset) -> str:
    """Do it. Killed on the way, it goes on when the same is asked for again. Returns a line about it.

    Raises:
        BusyError: a stage that is to be taken back is running.
    """
    round_ = reset.round_
    trash = round_.path / ".reset"
    with contextlib.ExitStack() as held:
        for stage in reset.stages:
            held.enter_context(round_.idle(stage))
        if "audit" in reset.stages:
            _empty_outbox(reset.run, round_, keep=not reset.discard_paid)
        # Again, now that nobody writes and what was on its way has arrived.
        reset = plan_reset(reset.run, round_.index, reset.stages[0], discard_paid=reset.discard_paid)
        shutil.rmtree(trash, ignore_errors=True)  # of one that was killed
        trash.mkdir()
        for number, folder in enumerate(reset.folders):
            if folder not in reset.kept:
                folder.rename(trash / f"{number}-{folder.name}")
        aside = round_.kept / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.time_ns() % 10**9:09d}"
        for folder in reset.kept:
            aside.mkdir(parents=True, exist_ok=True)
            folder.rename(aside / folder.name)
        for stage in reset.stages:
            for record in round_.path.glob(f".{stage}.*run.json"):
                record.unlink()
        files.sync_folder(round_.path)
        shutil.rmtree(trash)
    kept = f"; what was paid for is in {aside}" if reset.kept else ""
    command = f"omniopd {reset.stages[0]} {_quoted(reset.run)} --round {round_.index}"
    return f"round {round_.index} is as it was before {reset.stages[0]}{kept}; next: {command}"


def _written(run: RunDir, round_: RoundDir, stage: Stage) -> tuple[Path, ...]:
    """What a stage writes, the last first."""
    index = round_.index
    if stage == "train":
        # After so many rounds: those of later rounds have gone with them.
        evals = tuple(path for path in (run.path / "eval").glob("after=*") if _rounds(path) > index)
        metrics = run.train_metrics(index), run.train_steps(index), run.train_log(index)
        return *evals, round_.policy, round_.checkpoint, *metrics
    if stage == "score":
        folders = round_.shards.folder, round_.path / "scores", round_.rewards.folder, round_.drafts.folder
        return round_.path / "study", *folders
    if stage == "audit":
        return round_.chunks.folder, round_.rollouts.folder
    return round_.trajectories.folder, run.generate_log(index)


def _quoted(run: RunDir) -> str:
    """Its path as a shell takes it."""
    return shlex.quote(str(run.path))


def _rounds(path: Path) -> int:
    number = path.name.removeprefix("after=")
    return int(number) if number.isdigit() else -1


def _begun(round_: RoundDir) -> bool:
    return any(path.exists() for path in (round_.trajectories.folder, round_.rollouts.folder, round_.policy))


def _rows(folder: Path) -> str:
    """What a table holds, for people; empty for what is no table."""
    manifests = [commit.content or b"" for commit in commits.newest(folder).values()]
    try:
        rows = sum(part["rows"] for content in manifests for part in json.loads(content)["parts"])
    except (ValueError, KeyError):
        return "unreadable, "
    return f"{rows:,} rows, " if manifests else ""


def _paid(run: RunDir, round_: RoundDir) -> str:
    """What the rows that are there have cost, or where they cannot be read, all that the round has."""
    import pyarrow.compute

    compute: Any = pyarrow.compute
    try:
        rows = round_.rollouts.read(["prompt_tokens", "completion_tokens", "cost_usd"])
    except TableError:
        totals = read_totals(run.ledger, round_.index)
        return f"{totals.charged_tokens:,} teacher tokens, ${totals.charged_nusd / NANO:.4f} by the ledger"
    if not rows.num_rows:
        return ""
    prompt, completion, usd = (cast("float", compute.sum(rows[name]).as_py() or 0) for name in rows.column_names)
    return f"{int(prompt + completion):,} teacher tokens, ${usd:.4f}"


def _refuse_open_batches(run: RunDir, index: int) -> None:
    count = sum(batch.round == index and batch.state != "closed" for batch in read_batches(run.ledger))
    if count:
        problem = f"{count} batches of round {index} are still with the provider."
        fetch = f"omniopd audit {_quoted(run)} --round {index}"
        raise TableError(
            problem, f"Fetch them: `{fetch}`, or give them up: `omniopd batches {_quoted(run)} --cancel all`."
        )


def _empty_outbox(run: RunDir, round_: RoundDir, *, keep: bool) -> None:
    """Answers that a crash left on their way into the table: into it, so that they are set aside with it, or away."""
    if not read_outbox_size(run.ledger, round_.index):
        return
    with contextlib.closing(Ledger(run.ledger)) as ledger:
        # No two entries have rows in common, so what is there at first is all that may be there already.
        table = round_.rollouts
        present = table.existing_keys() if keep else set[tuple[Any, ...]]()
        while entries := ledger.outbox(round_.index, _OUTBOX_ROWS):
            if keep:
                table.folder.mkdir(exist_ok=True)
                rows = [row for _, payload in entries for row in json.loads(payload)]
                table.append([row for row in rows if (row["chunk_id"], row["rollout_index"]) not in present])
            ledger.clear_outbox([request_id for request_id, _ in entries])
