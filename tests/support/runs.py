"""Run directories on the shipped student, and trajectories that are sampled once for all tests that want the same."""

import fcntl
import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import omniopd
from omniopd.demo.tasks.sums import problems
from omniopd.store.config import Config
from omniopd.store.layout import RunDir

from .tables import newest

STUDENT = Path(omniopd.__file__).parent / "demo" / "models" / "student"
"""A real Qwen3-architecture model that ships with the package."""


def change_student(folder: Path, **changes: Any) -> None:
    """Change keys of a model's config.json; None takes one out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def write_run(path: Path, questions: int = 12, **sections: dict[str, Any]) -> RunDir:
    """A run directory with a config, and its prompts beside it; keyword arguments are sections of the config, in which
    None takes a key out."""
    prompts = path.with_suffix(".jsonl")
    rows = [json.dumps({"question": p.question}) for p in problems(questions, seed=5, split="train")]
    prompts.write_text("\n".join(rows) + "\n")
    config: dict[str, dict[str, Any]] = {
        "student": {"model": str(STUDENT), "engine": "transformers"},
        "data": {"prompts": str(prompts), "template": "{question}\n"},
        "generate": {"max_new_tokens": 56, "batch_size": 8, "part_rows": 8},
        "select": {"chunks": 3, "chunk_tokens": 6},
        "teacher": {"model": "scripted", "base_url": "http://127.0.0.1:9/v1", "rollouts": 4, "max_tokens": 12},
        "score": {"unit": "char"},
        "train": {"lr": 1e-3, "global_batch": 4, "micro_batch": 4, "checkpoint_every": 1},
    }
    for section, values in sections.items():
        config.setdefault(section, {}).update(values)
    run = RunDir(path)
    run.path.mkdir()
    lines = [f"[{section}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items() if v is not None)
             for section, keys in config.items()]  # fmt: skip
    run.config_toml.write_text("\n".join(lines))
    return run


@dataclass(frozen=True)
class GeneratedRounds:
    """Rounds as `generate` left them, by everything that determines their trajectories."""

    folder: Path
    """Shared by the processes of one pytest call."""

    def __call__(self, run: RunDir, config: Config | None = None) -> RunDir:
        """Fill round 0 with its trajectories: a copy where they were sampled before, else by `generate`."""
        config = config or run.config()
        prompts = Path(config.data.prompts).read_bytes()
        facts = {
            "student": config.student.model_dump(),
            "data": config.data.model_dump() | {"prompts": hashlib.sha256(prompts).hexdigest()},
            "generate": config.generate.model_dump(),
            "objective": config.train.objective,
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        kept, round_ = self.folder / key, run.round(0)
        with (self.folder / f"{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                from omniopd.stages.generate.stage import generate

                generate(run, 0, config)
                shutil.copytree(round_.path, kept)
                return run
        shutil.copytree(kept, round_.path)
        # The file with the prompts is a setting of the table, and each run has its own.
        path = newest(round_.trajectories.folder)
        manifest = json.loads(path.read_text())
        manifest["made_with"]["data.prompts"] = config.data.prompts
        path.write_text(json.dumps(manifest))
        return run
