"""`omniopd` or `draft`? One round of each on the same student, prompts and teacher, and the accuracy of both.

    python examples/two_objectives.py runs/first runs/first-draft --benchmark heldout.jsonl

runs/first is a run with a config.toml (`omniopd init`, examples/first_run.py). The other is made from it, and gets the
same teacher tokens as a hard budget, which are more prompts at once: `data.per_round` says how many at most.
"""

import argparse
import shutil
from pathlib import Path

from omniopd import Run
from omniopd.store.errors import BudgetReached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("draft", type=Path)
    parser.add_argument("--benchmark", required=True)
    parser.add_argument("--prompts", type=int, help="prompts of the draft run; unset: as many as of the other")
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()

    first = Run(args.run, [*args.settings, "train.objective=omniopd"])
    first.run(1)
    args.draft.mkdir(parents=True, exist_ok=True)
    if not (args.draft / "config.toml").exists():
        shutil.copyfile(args.run / "config.toml", args.draft / "config.toml")
    more = [] if args.prompts is None else [f"data.per_round={args.prompts}"]
    tokens = first.status().spend.tokens
    draft = Run(args.draft, [*args.settings, *more, "train.objective=draft", f"teacher.budget_tokens={tokens}"])
    try:
        draft.run(1)
    except BudgetReached as reached:
        print(reached.problem)

    for name, run, after in (("student before", first, 0), ("omniopd", first, 1), ("draft", draft, 1)):
        measured = run.eval(args.benchmark, after).graders[0].pass_at_1
        spent = run.status().spend.tokens if after else 0
        low, high = 100 * measured.low, 100 * measured.high
        print(f"{name:<15} Pass@1 {100 * measured.value:5.1f} [{low:.1f}, {high:.1f}]  {spent:>9,} teacher tokens")


if __name__ == "__main__":
    main()
