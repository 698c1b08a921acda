"""The estimate of `train/memory.py` beside a step at full size that is walked through without memory."""

from typing import Any

import pytest

from omniopd.store.architecture import Architecture
from omniopd.store.sections import TrainConfig
from omniopd.train.memory import training_need
from support.meta_walk import peak_of_a_step

QWEN3 = {
    # layers, hidden, feed-forward, heads, key-value groups, head size, vocabulary
    "1.7b": (28, 2048, 6144, 16, 8, 128, 151_936),
    "4b": (36, 2560, 9728, 32, 8, 128, 151_936),
}
SECTIONS: dict[str, dict[str, Any]] = {
    "recomputed": {"recompute": True},
    "nothing recomputed": {},
    "few rows of logits": {"recompute": True, "loss_rows": 256},
    "float32": {"recompute": True, "precision": "fp32"},
    "adapters, recomputed": {"recompute": True, "lora": {"rank": 16, "alpha": 32}},
    "adapters": {"lora": {"rank": 16, "alpha": 32}},
}


def walked(shape: str, tokens: int, section: dict[str, Any]) -> tuple[float, float]:
    """GB of the walk, and of the estimate."""
    arch = Architecture("qwen3", *QWEN3[shape], 40_960, True, 1e-6, 1e6, None)
    train = TrainConfig.model_validate({"micro_batch": 1, "precision": "bf16"} | section).on(cuda=True)
    need = training_need(arch, train, processes=1, longest=tokens, frozen=arch, fused=True)
    return peak_of_a_step(arch, train, tokens) / 1e9, need.total / 1e9


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("tokens", [4096, 20480])
@pytest.mark.parametrize("shape", QWEN3)
def test_the_estimate_is_below_what_a_step_holds_and_within_15_percent(shape: str, tokens: int, section: str) -> None:
    walk, need = walked(shape, tokens, SECTIONS[section])
    print(f"{shape} {tokens} {section}: {walk:.1f} GB walked, {need:.1f} estimated, {need / walk:.2f}")
    assert 0.85 * walk < need <= walk


@pytest.mark.slow
@pytest.mark.parametrize(("tokens", "measured"), [(4096, 13.2), (20480, 16.7)])
def test_the_walk_holds_what_a_gpu_held(tokens: int, measured: float) -> None:
    """`make gpu-check` on an H100, November 2026: docs/gpu.md."""
    walk, _ = walked("4b", tokens, SECTIONS["adapters, recomputed"])
    assert walk == pytest.approx(measured, rel=0.06)
