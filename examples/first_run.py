"""A first run from Python: plan, one round or more, and what came of it.

    python examples/first_run.py runs/first --student Qwen/Qwen3-1.7B --prompts prompts.jsonl \\
        --teacher Qwen/Qwen3-32B --base-url http://127.0.0.1:8000/v1

The teacher is any server that speaks OpenAI's API. The same command again resumes a run that was stopped. `--set` takes
keys of the config, as the commands do.
"""

import argparse
from pathlib import Path

from omniopd import Run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--student", required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    args = parser.parse_args()

    if not (args.run / "config.toml").exists():
        Run.create(
            args.run,
            {
                "student.model": args.student,
                "data.prompts": args.prompts,
                "teacher.model": args.teacher,
                "teacher.base_url": args.base_url,
            },
        )
    run = Run(args.run, args.settings)
    policy = run.run(args.rounds)

    status = run.status()
    print(f"{status.spend.tokens:,} teacher tokens, ${status.spend.usd:.2f}; next: {status.next}")
    chunks = run.table("chunks_scored").drop_nulls("pi_teacher").sort("pi_teacher")
    print("where the teacher goes on otherwise than the student:")
    for chunk in chunks.head(5).iter_rows(named=True):
        print(f"  weight {chunk['pi_teacher']:.2f}  ...{chunk['prefix_text'][-40:]!r} || {chunk['chunk_text']!r}")
    print(policy)


if __name__ == "__main__":
    main()
