"""omniopd, draft and SFT on a real small model, at equal teacher tokens, on word problems that the teacher does better.

    python benchmarks/experiments/smollm2.py MODEL
    python benchmarks/experiments/smollm2_study.py MODEL FOLDER --rounds 2 --seeds 1
    omniopd report FOLDER

The student is SmolLM2-135M-Instruct under its usual system prompt. The teacher is the same model with three worked
examples in its system prompt, at T = 0.3, behind the demo's server over HTTP. 200 problems are trained on and 200
others, with other numbers, are asked. Prints the study's table.
"""

import argparse
import json
import os
import random
from dataclasses import replace
from pathlib import Path

from smollm2_drafts import NAMES, THINGS, Tutored

from omniopd.demo.teacher.process import TeacherServer
from omniopd.store.config import commented_toml
from omniopd.store.studies import StudyDir
from omniopd.study.arms import compare_arms
from omniopd.study.runner import StudyOptions, run_study

ARMS = ("omniopd", "draft", "sft")
COUNT = 200
USUAL = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TUTOR = (
    "You are a mathematics tutor. Solve the problem in short steps with one calculation each and finish with the"
    " answer, as in these examples.\n"
    "Question: Sam has 4 pens, gets 5 more and gives away 2. How many pens are left?\n"
    "Solution: Sam starts with 4 pens. With 5 more Sam has 4 + 5 = 9. After giving away 2 Sam has 9 - 2 = 7."
    " The answer is 7.\n"
    "Question: Zoe has 8 cards, gets 3 more and gives away 1. How many cards are left?\n"
    "Solution: Zoe starts with 8 cards. With 3 more Zoe has 8 + 3 = 11. After giving away 1 Zoe has 11 - 1 = 10."
    " The answer is 10.\n"
    "Question: Ben has 6 keys, gets 7 more and gives away 3. How many keys are left?\n"
    "Solution: Ben starts with 6 keys. With 7 more Ben has 6 + 7 = 13. After giving away 3 Ben has 13 - 3 = 10."
    " The answer is 10."
)


def problems(held_out: bool) -> list[dict[str, str]]:
    """200 problems; no pair of first numbers is in both sets."""
    draw, rows = random.Random(int(held_out)), dict[str, str]()
    while len(rows) < COUNT:
        has, gets, gives = draw.randint(2, 9), draw.randint(2, 9), draw.randint(1, 3)
        thing, name = draw.choice(THINGS), draw.choice(NAMES)
        if ((has + 2 * gets) % 3 == 0) == held_out:
            question = f"{name} has {has} {thing}, gets {gets} more and gives away {gives}. How many {thing} are left?"
            rows[question] = str(has + gets - gives)
    return [{"question": question, "answer": answer} for question, answer in rows.items()]


def prepare(study: StudyDir, model: Path, prompts: int) -> None:
    study.path.mkdir(parents=True, exist_ok=True)
    train, held_out = study.path.absolute() / "prompts.jsonl", study.path.absolute() / "heldout.jsonl"
    for path, rows in ((train, problems(False)), (held_out, problems(True))):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    values = {
        "student": {"model": str(model.resolve()), "engine": "transformers", "dtype": "float32"},
        "data": {"prompts": str(train), "answer": "answer", "per_round": prompts},
        "generate": {"max_new_tokens": 80, "batch_size": 40},
        "select": {"chunks": 3, "chunk_tokens": 12},
        "teacher": {
            "base_url": "http://127.0.0.1:1/v1", "model": "teacher", "rollouts": 4, "temperature": 0.3, "seed": 0,
            "timeout_s": 1800, "concurrency": 8,
        },
        "score": {"centre": "batch_mean"},
        "train": {"lr": 5e-5, "global_batch": 16, "micro_batch": 4, "checkpoint_every": 50},
        "eval": {"benchmark": str(held_out), "samples": 1, "max_new_tokens": 80},
    }  # fmt: skip
    study.base.config_toml.write_text(commented_toml(values), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prompts", type=int, default=32, help="of omniopd, a round; the others' follow from its cost")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    study = StudyDir(args.folder)
    with TeacherServer(args.model) as upstream:
        url = Tutored(upstream, USUAL, TUTOR).url
        if not study.base.config_toml.exists():
            prepare(study, args.model, args.prompts)
        base = study.base.config((f"teacher.base_url={url}", f"run.rounds={args.rounds}"))
        # One teacher for all: draft would have its own temperature by default.
        arms = [
            replace(arm, changes={**arm.changes, "teacher.temperature": 0.3} if arm.name == "draft" else arm.changes)
            for arm in compare_arms(base, "tokens")[0]
            if arm.name in ARMS
        ]
        options = StudyOptions(args.seeds, args.jobs, curve=True)
        print(run_study(study, "explore", base, (arms, []), options, lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
