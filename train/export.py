"""`omniopd export`: a run's policy as a Hugging Face folder of its own, in the precision that it will be served in."""

import json
import shutil
from pathlib import Path
from typing import Literal

from ..store import files
from ..store.errors import InputError
from ..store.layout import RunDir
from ..store.model import say_precision

ADAPTERS = "adapter"
"""Folder of the adapters in PEFT's format, inside a policy's."""

Dtype = Literal["keep", "float32", "bfloat16", "float16"]


def last_round(run: RunDir, after: int | None) -> int:
    """The round that trained the policy after so many rounds; None: after all that are finished.

    Raises:
        InputError: there is no such policy.
    """
    trained = [round_.index + 1 for round_ in run.rounds() if round_.policy.is_dir()]
    if not trained:
        raise InputError(f"{run.path} has no trained policy yet.", f"Train one with `omniopd run {run.path}`.")
    if after is not None and after not in trained:
        found = ", ".join(map(str, trained))
        raise InputError(f"{run.path} has no policy after {after} rounds.", f"There is one after {found}.")
    return (max(trained) if after is None else after) - 1


def export(
    run: RunDir, after: int | None, folder: Path, dtype: Dtype, *, adapter: bool = False, readme: str = ""
) -> str:
    """Copy the policy of a run, one file of weights at a time. Returns a line about it.

    Args:
        after: Rounds of training; None: all that are finished.
        folder: Must not exist.
        dtype: What floating-point weights are rounded to; the trainer writes them in its own precision.
        adapter: Copy the adapters alone, in PEFT's format.
        readme: Its README.md, in place of the student's; "" for none.

    Raises:
        InputError: there is no such policy, or it was trained without adapters.
        UsageError: the folder exists.
    """
    wanted = last_round(run, after)
    source = run.round(wanted).policy
    if adapter:
        if not (source / ADAPTERS).is_dir():
            raise InputError(f"{source} was trained without train.lora and has no adapters.", "Leave --adapter out.")
        source /= ADAPTERS
    # The weights are rounded on the way, unless they stay as they are.
    left_out = (ADAPTERS,) if dtype == "keep" else ("*.safetensors", ADAPTERS)
    with files.new_folder(folder) as new:
        shutil.copytree(source, new, ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True)
        if dtype != "keep":
            _round(source, new, dtype)
        if readme:
            (new / "README.md").write_text(readme, encoding="utf-8")
    what = "adapters" if adapter else "policy"
    return f"the {what} after {wanted + 1} rounds, {dtype if dtype != 'keep' else 'as it was trained'}: {folder}"


def _round(source: Path, folder: Path, dtype: Literal["float32", "bfloat16", "float16"]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    size = 0
    for path in sorted(source.glob("*.safetensors")):
        tensors = load_file(path)
        rounded = {k: t.to(getattr(torch, dtype)) if t.is_floating_point() else t for k, t in tensors.items()}
        size += sum(tensor.nbytes for tensor in rounded.values())
        save_file(rounded, folder / path.name, metadata={"format": "pt"})
    for index in folder.glob("*.safetensors.index.json"):
        tree = json.loads(index.read_text(encoding="utf-8"))
        tree["metadata"]["total_size"] = size
        index.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    if (folder / "config.json").is_file():
        say_precision(folder / "config.json", dtype)
