"""Custom arms on an embedded task, beside those of `make study`: any keys of the config, several at a time.

    python benchmarks/experiments/explore.py runs/study sums --rounds 3 \\
        --arm 'C=12' '{"select.chunk_tokens": 12, "teacher.max_tokens": 12}' --arm 'N=2' '{"teacher.rollouts": 2}'

An arm with "equal": "tokens", or "usd" with --set 'teacher.price={input = 1, output = 8.3}', spends what omniopd spent.
Runs are shared with all studies of the folder.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from omniopd.demo.study import prepare
from omniopd.demo.tasks.task import TASKS
from omniopd.demo.teacher.process import TeacherServer
from omniopd.store.studies import StudyDir
from omniopd.study.arms import REFERENCE, Arm
from omniopd.study.runner import StudyOptions, run_study


def arm(name: str, changes: dict[str, Any]) -> Arm:
    equal, more = changes.pop("equal", None), changes.pop("more", "prompts")
    return Arm(name, changes, ", ".join(f"{key} = {value}" for key, value in changes.items()), equal, more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--arm", nargs=2, action="append", metavar=("NAME", "CHANGES"), required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--set", action="append", default=[], help="a key of all arms, as teacher.price={...}")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    task, study = TASKS[args.task], StudyDir(args.folder / args.task)
    arms = [Arm(REFERENCE), *(arm(name, json.loads(changes)) for name, changes in args.arm)]
    with TeacherServer(task.teacher) as base_url:
        prepare(study, task)
        base = study.base.config((f"teacher.base_url={base_url}", f"run.rounds={args.rounds}", *args.set))
        options = StudyOptions(args.seeds, args.jobs, args.curve)
        print(run_study(study, "explore", base, (arms, []), options, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
