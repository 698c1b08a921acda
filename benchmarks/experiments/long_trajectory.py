"""A trajectory of 20,000 tokens through generate, selection and Parquet, with the peak memory of each.

    python benchmarks/experiments/long_trajectory.py FOLDER ENGINE [key=value ...]

FOLDER is a student. It is copied with a context of 20,480 tokens and a stop token that is hardly ever sampled: what it
writes past the context that it was trained on is no language, and that does not matter here.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from omniopd.store.layout import RunDir

TOKENS = 20_000
STOP_TOKEN = 9


def long_student(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text()) | {"eos_token_id": STOP_TOKEN}
        if name == "config.json":
            values["max_position_embeddings"] = 20_480
        (folder / name).write_text(json.dumps(values))
    added = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    path = folder / "tokenizer_config.json"
    stop = next((token["content"] for token in added if token["id"] == STOP_TOKEN), added[0]["content"])
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": stop}))


def step(name: str, *arguments: str) -> None:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "omniopd", *arguments], check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{name}: {time.perf_counter() - start:.0f} s, largest process so far {peak:.0f} MiB", flush=True)


def main() -> None:
    source, engine, *overrides = sys.argv[1:]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    with tempfile.TemporaryDirectory() as folder:
        long_student(Path(source), Path(folder) / "student")
        (Path(folder) / "prompts.jsonl").write_text('{"question": "2+2"}\n')
        run = RunDir(Path(folder) / "run")
        run.path.mkdir()
        run.config_toml.write_text(
            f'[student]\nmodel = "{folder}/student"\nengine = "{engine}"\n'
            f'[data]\nprompts = "{folder}/prompts.jsonl"\nchat_template = "off"\n'
            f"[generate]\nmax_new_tokens = {TOKENS}\n"
            '[teacher]\nmodel = "none"\n[score]\nweights = "constant"\n'
        )
        sets = [word for override in overrides for word in ("--set", override)]
        step("generate", "generate", str(run.path), *sets)
        step("selection", "audit", str(run.path), *sets)
        (row,) = run.round(0).trajectories.read().to_pylist()
        assert len(row["response_ids"]) == len(row["entropies"])
        size = sum(path.stat().st_size for path in run.round(0).trajectories.files())
        tokens, chunks = len(row["response_ids"]), run.round(0).chunks.manifest.rows
        print(f"{tokens} tokens, {chunks} chunks, {size / 1024:.0f} KiB Parquet, {row['entropy_source']}")


if __name__ == "__main__":
    main()
