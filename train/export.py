"""`omniopd export`: a run's policy as a Hugging Face folder of its own, in the precision that it will be served in."""

import json
import shutil
from pathlib import Path
from typing import Literal

from ..store import files
from ..store.errors import InputError, UsageError
from ..store.layout import RunDir
from ..store.model import say_precision

ADAPTERS = "adapter"
"""Folder of the adapters in PEFT's format, inside a policy's."""

Dtype = Literal["keep", "float32", "bfloat16", "float16"]


def export(run: RunDir, after: int | None, folder: Path, dtype: Dtype, *, adapter: bool = False) -> str:
    """Copy the policy of a run, one file of weights at a time. Returns a line about it.

    Args:
        after: Rounds of training; None: all that are finished.
        folder: Must not exist.
        dtype: What floating-point weights are rounded to; the trainer writes them in its own precision.
        adapter: Copy the adapters alone, in PEFT's format.

    Raises:
        InputError: there is no such policy, or it was trained without adapters.
        UsageError: the folder exists.
    """
    trained = [round_.index + 1 for round_ in run.rounds() if round_.policy.is_dir()]
    if not trained:
        raise InputError(f"{run.path} has no trained policy yet.", f"Train one with `omniopd run {run.path}`.")
    wanted = max(trained) if after is None else after
    if wanted not in trained:
        found = ", ".join(map(str, trained))
        raise InputError(f"{run.path} has no policy after {wanted} rounds.", f"There is one after {found}.")
    if folder.exists():
        raise UsageError(f"{folder} exists.", "Choose another folder.")
    source = run.round(wanted - 1).policy
    if adapter:
        if not (source / ADAPTERS).is_dir():
            raise InputError(f"{source} was trained without train.lora and has no adapters.", "Leave --adapter out.")
        source /= ADAPTERS
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    if dtype == "keep":
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns(ADAPTERS))
    else:
        shutil.copytree(source, temporary, ignore=shutil.ignore_patterns("*.safetensors", ADAPTERS))
        _round(source, temporary, dtype)
    files.sync_files(temporary)
    temporary.rename(folder)
    files.sync_folder(folder.parent)
    what = "adapters" if adapter else "policy"
    return f"the {what} after {wanted} rounds, {dtype if dtype != 'keep' else 'as it was trained'}: {folder}"


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
