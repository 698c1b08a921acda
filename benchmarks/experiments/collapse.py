"""Table 6 on the demo's student: does it degrade without the KL anchor?

    python benchmarks/experiments/collapse.py FOLDER --rounds 24 --centre none --beta 0.1 0

The rounds are the demo's but for their number, `train.beta`, `train.lr` and `score.centre`. After every `--every`
rounds the student answers the held-out questions; what its trajectories looked like comes from the rounds' own tables.
"""

import argparse
import json
from pathlib import Path

from omniopd.demo.evaluate import evaluate, wilson
from omniopd.demo.run import HELD_OUT, PROMPTS_PER_ROUND, settings
from omniopd.demo.tasks.sums import problems
from omniopd.demo.teacher.process import TeacherServer
from omniopd.run import run_round
from omniopd.store.config import commented_toml
from omniopd.store.layout import RunDir
from omniopd.train.metrics import MetricsLog


def prepare(run: RunDir, rounds: int, seed: int, beta: float, centre: str, lr: float, base_url: str) -> None:
    """Prompts and config of one arm."""
    run.path.mkdir(parents=True, exist_ok=True)
    questions = problems(PROMPTS_PER_ROUND * rounds, seed=seed, split="train")
    prompts = run.path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": p.question}) + "\n" for p in questions), encoding="utf-8")
    values = settings(prompts, rounds, seed, base_url)
    values["score"]["centre"] = centre
    values["train"] |= {"beta": beta, "lr": lr}
    run.config_toml.write_text(commented_toml(values), encoding="utf-8")


def trajectories(run: RunDir, index: int) -> tuple[float, float]:
    """Mean tokens of a response, and mean entropy a token, of the policy that sampled a round."""
    rows = run.round(index).trajectories.read(["response_ids", "entropies"]).to_pylist()
    tokens = sum(len(row["response_ids"]) for row in rows)
    return tokens / len(rows), sum(sum(row["entropies"]) for row in rows) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--beta", type=float, nargs="+", default=[0.1, 0.0])
    parser.add_argument("--centre", default="none")
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    held_out = problems(HELD_OUT, seed=args.seed, split="heldout")
    print("beta, rounds, T=1, greedy, tokens, entropy, audited NLL, KL, mean weight", flush=True)
    with TeacherServer() as base_url:
        for beta in args.beta:
            run = RunDir(args.folder / f"beta={beta}-centre={args.centre}-lr={args.lr}-seed={args.seed}")
            prepare(run, args.rounds, args.seed, beta, args.centre, args.lr, base_url)
            config = run.config()
            for index in range(args.rounds):
                run_round(run, index, config, [], lambda _: None)
                if (index + 1) % args.every:
                    continue
                result = evaluate(run.round(index).policy, held_out, args.seed)
                cells = ["{:5.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in wilson(v)))
                         for v in (result.sampled, result.greedy)]  # fmt: skip
                tokens, entropy = trajectories(run, index)
                last = MetricsLog(run, index).rows()[-1]
                kl = "-" if last["kl_mean"] is None else f"{last['kl_mean']:.4f}"
                print(
                    f"{beta:<5}{index + 1:>3}  {'  '.join(cells)}  {tokens:6.1f}  {entropy:.4f}"
                    f"  {last['audited_nll']:.4f}  {kl}  {last['mean_weight']:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
