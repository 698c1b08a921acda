"""Two rounds of SmolLM2-135M-Instruct over 40 chats with system prompts and tool turns, the teacher behind a server
that is not ours.

    python benchmarks/experiments/smollm2.py MODEL
    PYTHONPATH=tests python benchmarks/experiments/conversations.py MODEL FOLDER

The teacher is the same model behind `transformers serve`, asked by chat turns and, with --continuation completion, by
the text that the student read. It teaches nothing new: what is looked at is that whole conversations go through all
stages.
"""

import argparse
import json
import time
from pathlib import Path

from omniopd.run import run_round
from omniopd.store.config import commented_toml
from omniopd.store.layout import RunDir
from omniopd.train.metrics import MetricsLog
from support.served import transformers_serve

SYSTEMS = ("You are a helpful clerk.", "Answer in one short sentence.", "You speak like a sailor.", "")
CITIES = ("Paris", "Kyoto", "Lima", "Cairo", "Oslo", "Delhi", "Quito", "Accra", "Hanoi", "Turin")
TOOL = {"type": "function", "function": {
    "name": "weather", "description": "Today's weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}  # fmt: skip


def chats() -> list[dict[str, object]]:
    """40 conversations: half of them with a tool's result, all but a quarter with a system prompt."""
    rows: list[dict[str, object]] = []
    for i, (city, system) in enumerate((city, system) for city in CITIES for system in SYSTEMS):
        messages: list[dict[str, object]] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": f"What is the weather in {city}?"})
        if i % 2:
            call = {"id": f"c{i}", "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
            messages += [
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": f"c{i}", "content": f"{city}: {10 + i} degrees, light wind"},
            ]
        else:
            messages += [
                {"role": "assistant", "content": [{"type": "text", "text": "I cannot look outside."}]},
                {"role": "user", "content": f"Then what should I wear in {city} in spring?"},
            ]
        rows.append({"messages": messages, **({"tools": [TOOL]} if i % 2 else {})})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--continuation", default="instruct")
    args = parser.parse_args()
    run = RunDir(args.folder)
    run.path.mkdir(parents=True)
    prompts = run.path / "chats.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in chats()), encoding="utf-8")
    model = str(args.model.resolve())
    with transformers_serve(args.model.resolve(), run.path) as url:
        settings: dict[str, dict[str, object]] = {
            "student": {"model": model, "engine": "transformers", "dtype": "float32"},
            "data": {"prompts": str(prompts.resolve()), "field": "messages"},
            "generate": {"max_new_tokens": 32, "batch_size": 20},
            "select": {"chunks": 1, "chunk_tokens": 8},
            "teacher": {"base_url": url, "model": model, "rollouts": 2, "temperature": 0.3, "seed": 0,
                        "max_concurrency": 4, "continuation": args.continuation, "timeout_s": 300},
            "train": {"lr": 1e-5, "global_batch": 8, "micro_batch": 2, "checkpoint_every": 50},
        }  # fmt: skip
        run.config_toml.write_text(commented_toml(settings), encoding="utf-8")
        for index in range(2):
            start = time.monotonic()
            run_round(run, index, run.config(), [], print)
            print(f"round {index}: {time.monotonic() - start:.0f} s", flush=True)
    for index in range(2):
        rows = run.round(index).trajectories.read(["messages", "prompt_text", "question"]).to_pylist()
        whole = sum(all(turn["content"] in row["prompt_text"] for turn in json.loads(row["messages"])) for row in rows)
        statuses = run.round(index).rollouts.read(["status"])["status"].to_pylist()
        losses = [round(row["loss"], 4) for row in MetricsLog(run, index).rows()]
        print(f"round {index}: {whole} of {len(rows)} prompts hold every turn; rollouts"
              f" { {status: statuses.count(status) for status in set(statuses)} }; loss {losses}")  # fmt: skip


if __name__ == "__main__":
    main()
