"""bfloat16 parameters with float32 behind them: small steps add up."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from omniopd.store.layout import RunDir
from omniopd.train.metrics import MetricsLog
from omniopd.train.trainer import train_round
from support import training as kit


def moved(folder: Path, student: Path, **train: Any) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """How far each weight of all matrices moved in a round, in one vector; and the round's metrics."""
    config = kit.make_config(student, global_batch=8, lr=1e-4, checkpoint_every=100, **train)
    run = RunDir(folder)
    kit.write_round(run, 0, config, kit.shard_rows(8))
    train_round(run, 0, config)
    before, after = (load_file(path / "model.safetensors") for path in (student, run.round(0).policy))
    parts = [(after[name].float() - before[name].float()).flatten() for name in before if before[name].ndim == 2]
    return torch.cat(parts), MetricsLog(run, 0).rows()


def test_steps_too_small_for_bfloat16_add_up_as_they_do_in_float32(tmp_path: Path) -> None:
    student = kit.save_student(tmp_path / "student", "qwen3", dtype=torch.bfloat16)
    once, _ = moved(tmp_path / "once", student, precision="bf16", epochs=1)
    bf16, rows = moved(tmp_path / "bf16", student, precision="bf16", epochs=16)
    fp32, exact = moved(tmp_path / "fp32", student, precision="fp32", epochs=16)
    assert (once != 0).float().mean() < 0.4, "most weights cannot hold one step"
    assert (bf16 != 0).float().mean() > 0.6, "but float32 remembers it"
    assert torch.nn.functional.cosine_similarity(bf16, fp32, dim=0) > 0.9
    for mine, theirs in zip(rows, exact, strict=True):
        assert abs(mine["audited_nll"] - theirs["audited_nll"]) < 0.01 * theirs["audited_nll"]
        assert abs(mine["grad_norm"] - theirs["grad_norm"]) < 0.05 * theirs["grad_norm"]
