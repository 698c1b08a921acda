"""`make study`: the paper's baselines on the embedded tasks, several seeds each, in one table a task.

`--kind ablation` and `--kind sensitivity` do the other studies of the same arms.

The folders are ordinary studies: `omniopd study sensitivity runs/study/sums` goes on from there, with a teacher's
server of one's own (`python -m omniopd.demo.teacher.server`).
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ..store.config import commented_toml
from ..store.errors import OmniopdError
from ..store.studies import StudyDir
from ..study.runner import StudyOptions, run_study
from .run import HELD_OUT, PROMPTS_PER_ROUND
from .tasks.task import TASKS, Problem, Task
from .teacher.process import TeacherServer

POOL = 8192
"""Prompts to draw from: each seed shuffles them, and so trains on others."""


def study(folder: Path, task: Task, kinds: Sequence[str], rounds: int, options: StudyOptions) -> list[str]:
    """Run studies of an embedded task; resumes where it was stopped. Returns their tables."""
    from ..study.arms import ablation_arms, compare_arms, sensitivity_arms

    study_ = StudyDir(folder / task.name)
    tables: list[str] = []
    with TeacherServer(task.teacher) as base_url:
        prepare(study_, task)
        base = study_.base.config((f"teacher.base_url={base_url}", f"run.rounds={rounds}"))
        if "compare" in kinds:
            tables.append(run_study(study_, "compare", base, compare_arms(base, options.equal), options, _say))
        if "ablation" in kinds:
            tables.append(run_study(study_, "ablation", base, ablation_arms(base), options, _say))
        if "sensitivity" in kinds:
            tables.append(run_study(study_, "sensitivity", base, sensitivity_arms(base, {}), options, _say))
    return tables


def prepare(study: StudyDir, task: Task) -> None:
    """Write prompts, questions and config, unless they are there."""
    if study.base.config_toml.exists():
        return
    study.path.mkdir(parents=True, exist_ok=True)
    prompts, held_out = study.path / "prompts.jsonl", study.path / "heldout.jsonl"
    _write(prompts, task.problems(POOL, seed=0, split="train"))
    _write(held_out, task.problems(HELD_OUT, seed=0, split="heldout"))
    study.base.config_toml.write_text(commented_toml(settings(task, prompts, held_out)), encoding="utf-8")


def _write(path: Path, problems: Sequence[Problem]) -> None:
    rows = [json.dumps({"question": problem.question, "answer": str(problem.answer)}) for problem in problems]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def settings(task: Task, prompts: Path, held_out: Path) -> dict[str, dict[str, object]]:
    """The config that all arms begin with.

    Args:
        held_out: The questions that arms are evaluated on, once each.
    """
    values = task.config(prompts, PROMPTS_PER_ROUND)
    values["teacher"]["seed"] = 0
    values["data"]["answer"] = "answer"
    if task.white_box:
        values["train"]["teacher"] = str(task.teacher)
    values["eval"] = {"benchmark": str(held_out), "samples": 1, "max_new_tokens": task.max_new_tokens}
    return values


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> None:
    """Parse the command line, run the studies, and print their tables together at the end."""
    parser = argparse.ArgumentParser(prog="python -m omniopd.demo.study", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/study"))
    parser.add_argument("--task", choices=list(TASKS), action="append", help="default: all of them")
    parser.add_argument("--kind", choices=["compare", "ablation", "sensitivity"], action="append",
                        help="default: compare")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--curve", action="store_true", help="evaluate after every round")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    start, tables = time.monotonic(), list[str]()
    options = StudyOptions(arguments.seeds, arguments.jobs, arguments.curve)
    for name in arguments.task or TASKS:
        found = study(arguments.folder, TASKS[name], arguments.kind or ["compare"], arguments.rounds, options)
        tables += [f"\ntask {name}\n{table}" for table in found]
    _say("\n".join([*tables, f"\n{(time.monotonic() - start) / 60:.1f} minutes"]))


if __name__ == "__main__":
    try:
        main()
    except OmniopdError as error:
        sys.stderr.write(f"omniopd: {error}\n")
        sys.exit(error.exit_code)
