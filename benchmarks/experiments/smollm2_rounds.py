"""Two rounds of the whole loop on SmolLM2-135M-Instruct, on a CPU: does a real model train, and load again?

    python benchmarks/experiments/smollm2.py MODEL
    python benchmarks/experiments/smollm2_rounds.py MODEL FOLDER

The student samples at temperature 1. The teacher is the same model at a low temperature, behind the demo's server: it
is better than the student only in being less random, so this shows that the loop runs and moves the right way, not that
anything is learnt from a better model.
"""

import argparse
import json
import time
from pathlib import Path

from omniopd.demo.teacher.process import TeacherServer
from omniopd.run import run_round
from omniopd.store.config import commented_toml
from omniopd.store.layout import RunDir
from omniopd.train.metrics import MetricsLog

QUESTIONS = (
    "What is the capital of {}?",
    "Name three animals that live in {}.",
    "Describe the weather in {} in one sentence.",
    "What do people in {} like to eat?",
)
PLACES = ("France", "Japan", "Brazil", "Egypt", "Canada", "India")

COLUMNS = (
    "loss", "chunk_loss", "kl_mean", "phi", "mean_weight", "audited_entropy", "audited_nll", "grad_norm",
    "response_tokens", "repetition", "seconds",
)  # fmt: skip


def settings(model: Path, prompts: Path, base_url: str, lr: float) -> dict[str, dict[str, object]]:
    return {
        "student": {"model": str(model), "engine": "transformers", "dtype": "float32"},
        "data": {"prompts": str(prompts)},
        "generate": {"max_new_tokens": 96, "batch_size": 24},
        "select": {"chunks": 3, "chunk_tokens": 12},
        "teacher": {"base_url": base_url, "model": "teacher", "rollouts": 4, "temperature": 0.3, "seed": 0},
        "score": {"centre": "batch_mean"},
        "train": {"lr": lr, "global_batch": 8, "micro_batch": 2, "checkpoint_every": 50},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-5)
    args = parser.parse_args()
    run = RunDir(args.folder)
    run.path.mkdir(parents=True, exist_ok=True)
    prompts = run.path / "prompts.jsonl"
    questions = [question.format(place) for question in QUESTIONS for place in PLACES]
    prompts.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions), encoding="utf-8")
    with TeacherServer(args.model) as base_url:
        run.config_toml.write_text(
            commented_toml(settings(args.model.resolve(), prompts, base_url, args.lr)), encoding="utf-8"
        )
        for index in range(args.rounds):
            start = time.monotonic()
            run_round(run, index, run.config(), [], print)
            print(f"round {index}: {time.monotonic() - start:.0f} s", flush=True)
    print("round step " + " ".join(COLUMNS))
    for index in range(args.rounds):
        for row in MetricsLog(run, index).rows():
            print(index, row["step"], " ".join(f"{row[name]:.4g}" for name in COLUMNS))
    load_again(run.round(args.rounds - 1).policy)


def load_again(policy: Path) -> None:
    """The policy in transformers, with its own tokenizer and chat template."""
    from transformers import pipeline

    chat = pipeline("text-generation", model=str(policy))
    answer = chat([{"role": "user", "content": "What is the capital of France?"}], max_new_tokens=24, do_sample=False)
    print(answer[0]["generated_text"][-1])


if __name__ == "__main__":
    main()
