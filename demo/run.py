"""`omniopd demo`: the whole loop on models that ship with the package, with train.objective = "draft" and a
control beside it.

The student has a bad habit: at about half of the steps that carry, it forgets to (tasks/sums.py). The teacher knows
better. Nothing here is special to the demo but the models, the task and the teacher's server: the rounds are those of
`omniopd run`, and the run directory that is left behind is an ordinary one.
"""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..eval.estimate import Interval, wilson
from ..run import run_round, train_stage
from ..stages.audit.stage import audit
from ..stages.score.stage import score
from ..store.config import commented_toml
from ..store.errors import BudgetReached, UsageError
from ..store.layout import RunDir
from ..store.ledger_read import read_totals
from ..study.equal import equal_spend
from .evaluate import Result, evaluate, gain, keep
from .tasks.sums import problems
from .tasks.task import SUMS
from .teacher.process import MODELS, TeacherServer

PROMPTS_PER_ROUND = 256
DRAFTS_PER_ROUND = 1536
"""Prompts to take in a round of drafts, of which its tokens cover fewer."""
HELD_OUT = 1000

Say = Callable[[str], None]


@dataclass(frozen=True)
class Demo:
    """Verdicts on the same held-out problems, for each student."""

    before: Result
    control: Result
    """Learned from omniopd's trajectories, every audited token with the same weight."""
    omniopd: Result
    draft: Result
    """train.objective = "draft", for as many teacher tokens."""


def demo(path: Path, rounds: int, seed: int, say: Say) -> Demo:
    """Distil for some rounds in both ways, train the control, and compare. Resumes where it was stopped.

    Raises:
        UsageError: the folder is a run that the demo did not make.
    """
    start = time.monotonic()
    main, control, draft = (RunDir(path / f"seed={seed}{suffix}") for suffix in ("", "-control", "-draft"))
    held_out = problems(HELD_OUT, seed=seed, split="heldout")
    with TeacherServer() as base_url:
        _prepare(main, PROMPTS_PER_ROUND * rounds, rounds, seed, base_url, {})
        say(f"student and teacher are in {MODELS}; the teacher is served at {base_url}")
        before = evaluate(MODELS / "student", held_out, seed)
        say(f"{'Pass@1 before, at T = 1 and greedy:':<50} {_line(before)}")
        keep(main, 0, before)
        # A run that is resumed has another server's port in its config.
        overrides = [f"teacher.base_url={base_url}"]
        config = main.config(tuple(overrides))
        main.record(config)
        for index in range(rounds):
            run_round(main, index, config, overrides, say)
        say('the same teacher tokens with train.objective = "draft":')
        _prepare(draft, DRAFTS_PER_ROUND * rounds, rounds, seed, base_url, DRAFT)
        draft.record(draft.config(tuple(overrides)))
        for index in range(rounds):
            _draft_round(main, draft, index, overrides, say)
    # The control asks no teacher. Constant weights are zero once they are centred, so its weights are not.
    constant: dict[str, object] = {"weights": "constant", "centre": "none"}
    changes: dict[str, dict[str, object]] = {"score": constant, "train": {"off_policy": True}}
    _prepare(control, PROMPTS_PER_ROUND * rounds, rounds, seed, "", changes)
    control.record(control.config())
    say("training the control")
    for index in range(rounds):
        _replay_round(main, control, index)
    after: list[Result] = []
    for run in (control, main, draft):
        after.append(evaluate(run.round(rounds - 1).policy, held_out, seed))
        keep(run, 0, before)
        keep(run, rounds, after[-1])
    result = Demo(before, *after)
    _report(result, main, draft, time.monotonic() - start, say)
    return result


DRAFT: dict[str, dict[str, object]] = {
    "teacher": {"rollouts": 1, "max_tokens": None},
    "train": {"objective": "draft", "global_batch": 32},
}
"""What the draft arm sets differently: docs/experiments.md says how the figures were chosen. None is not set."""


def _draft_round(main: RunDir, draft: RunDir, index: int, overrides: list[str], say: Say) -> None:
    """A round of drafts for the teacher tokens of the same round of omniopd: a draft costs less than a prompt's audited
    chunks, so there are more prompts."""
    overrides = [*overrides, *equal_spend(main.round(index), draft.config(), "tokens", "prompts")]
    with contextlib.suppress(BudgetReached):  # the cap is reached, and what was paid for is trained on
        run_round(draft, index, draft.config(tuple(overrides)), overrides, say)


def _prepare(
    run: RunDir, count: int, rounds: int, seed: int, base_url: str, changes: dict[str, dict[str, object]]
) -> None:
    """Write prompts and config, unless they are there."""
    prompts = run.path.absolute() / "prompts.jsonl"
    if run.config_toml.exists():
        if not prompts.exists():
            raise UsageError(f"{run.path} is not a run of the demo.", "Choose another folder: omniopd demo FOLDER.")
        return
    run.path.mkdir(parents=True, exist_ok=True)
    questions = problems(count, seed=seed, split="train")
    prompts.write_text("".join(json.dumps({"question": p.question}) + "\n" for p in questions), encoding="utf-8")
    values = settings(prompts, rounds, seed, base_url)
    for section, keys in changes.items():
        values[section] = {key: value for key, value in (values[section] | keys).items() if value is not None}
    run.config_toml.write_text(commented_toml(values), encoding="utf-8")


def settings(prompts: Path, rounds: int, seed: int, base_url: str) -> dict[str, dict[str, object]]:
    """The demo's config: the task's settings, and where things are."""
    values = SUMS.config(prompts, PROMPTS_PER_ROUND)
    for section in ("data", "generate", "teacher", "train"):
        values[section]["seed"] = seed
    values["teacher"]["base_url"] = base_url
    values["run"] = {"rounds": rounds}
    return values


def _replay_round(main: RunDir, control: RunDir, index: int) -> None:
    """Train the control on a round's trajectories and chunks."""
    source, target = main.round(index), control.round(index)
    if target.policy.is_dir():
        return
    if not target.trajectories.complete:
        shutil.rmtree(target.trajectories.folder, ignore_errors=True)
        shutil.copytree(source.trajectories.folder, target.trajectories.folder)
    config = control.config()
    audit(control, index, config)
    score(control, index, config)
    train_stage(control, index, config, [])


def _report(result: Demo, main: RunDir, draft: RunDir, seconds: float, say: Say) -> None:
    say(f"\n{f'Pass@1 on {HELD_OUT} held-out problems, 95 % intervals':<50}  sampled at T = 1     greedy")
    rows = {
        "student before": result.before,
        "control, same trajectories": result.control,
        "omniopd": result.omniopd,
        "draft": result.draft,
    }
    for name, row in rows.items():
        say(f"  {name:<48} {_line(row)}")
    for name, other in (("student before", result.before), ("control, same trajectories", result.control)):
        for arm, own in (("omniopd", result.omniopd), ("draft", result.draft)):
            pairs = ((own.sampled, other.sampled), (own.greedy, other.greedy))
            gains = "   ".join("{:+5.1f} [{:+.1f}, {:+.1f}]".format(*_percent(gain(a, b))) for a, b in pairs)
            say(f"  {f'{arm} over {name}, points':<48} {gains}")
    tokens = [read_totals(run.ledger).charged_tokens for run in (main, draft)]
    say(f"teacher tokens: {tokens[0]:,} for omniopd, {tokens[1]:,} for draft, none for the control")
    query = "SELECT round, avg(k_sem / n) AS similarity FROM scores JOIN chunks USING (chunk_id) GROUP BY round"
    run = main.path
    say(f"\n{seconds / 60:.1f} minutes. The runs are in {run}, {draft.path.name} and so on. Look around:")
    command = "omniopd" if shutil.which("omniopd") else sys.argv[0]
    say(f"  {command} status {run}")
    say(f"  {command} inspect {run} trajectories --where 'round = 0'")
    say(f'  {command} sql {run} "{query} ORDER BY round"')
    say(f"  {command} report {run}")


def _line(result: Result) -> str:
    cells = (
        "{:5.1f} [{:.1f}, {:.1f}]".format(*_percent(wilson(sum(v), len(v)))) for v in (result.sampled, result.greedy)
    )
    return "   ".join(cells)


def _percent(interval: Interval) -> tuple[float, float, float]:
    return 100 * interval.value, 100 * interval.low, 100 * interval.high
