"""One optimizer step by length: time, model FLOP/s, and the peak beside what train/memory.py predicts."""

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import torch

from omniopd.store.architecture import Architecture
from omniopd.store.sections import TrainConfig
from omniopd.train.columns import can_compile
from omniopd.train.memory import training_need
from omniopd.train.objective import loss_terms
from omniopd.train.parallel import model_parallel, on_device, world
from omniopd.train.step import Learner

from .learner import learner, micro_batch
from .sizes import Sizes, architecture
from .timing import CUDA, DEVICE, peak, seconds


def check(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """The full trainer: bfloat16 with recompute at each length, and at the shortest also without and in float32."""
    cases = itertools.chain(
        ((tokens, {"precision": "bf16", "recompute": True}) for tokens in sizes.lengths),
        [(sizes.lengths[0], {"precision": "bf16", "recompute": False})],
        [(sizes.lengths[0], {"precision": "fp32", "recompute": True})],
    )
    for tokens, section in cases:
        yield one_step(sizes.shape, tokens, section)


def check_lora(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """Adapters of rank 16 on all projections, on a larger model, at the shortest and the longest length."""
    for tokens in (sizes.lengths[0], sizes.lengths[-1]):
        section = {"precision": "bf16", "recompute": True, "lora": {"rank": 16, "alpha": 32}}
        yield one_step(sizes.lora_shape, tokens, section)


def flop(arch: Architecture, tokens: int, *, trained_share: float = 1.0) -> float:
    """Floating-point operations of a step, without those of recomputation: what model FLOP utilization counts.

    The reference's forward pass (2 a parameter and token), the policy's (2) and its gradients (4, half of them by the
    weights); attention's causal half, 2 T^2 N D a forward pass and twice that backward; the heads of both models.

    Args:
        trained_share: of the linears' weights that get a gradient; next to nothing with LoRA.
    """
    query, key = arch.heads * arch.head_dim, arch.groups * arch.head_dim
    linears = arch.layers * arch.hidden * (2 * query + 2 * key + 3 * arch.ffn)
    attention = arch.layers * 2 * tokens**2 * query
    head = arch.vocabulary * arch.hidden
    return 2 * linears * tokens * (3 + trained_share) + 4 * attention + 2 * head * tokens * (3 + trained_share)


def one_step(shape: str, tokens: int, section: dict[str, Any]) -> dict[str, Any]:
    """Figures of a step on a sequence of that length, under some keys of [train]."""
    train = on_device(TrainConfig.model_validate({"micro_batch": 1} | section), DEVICE)
    arch = architecture(shape)
    row: dict[str, Any] = {"shape": shape, "tokens": tokens} | section
    with world(), model_parallel(train):
        try:
            made = learner(shape, train)
            row |= _measured(made, shape, tokens, train)
            work = flop(arch, tokens, trained_share=0 if train.lora else 1)
            row["mfu_of_989"] = work / row["s"] / 989e12
        except torch.OutOfMemoryError:
            row["out_of_memory"] = True
        made = None
        gc.collect()
    need = training_need(arch, train, processes=1, longest=tokens, frozen=arch, fused=CUDA and can_compile())
    return row | {"estimate_gb": round(need.total / 1e9, 2)}


def _measured(made: Learner, shape: str, tokens: int, train: TrainConfig) -> dict[str, Any]:
    batch, facts = micro_batch(shape, tokens)

    def step() -> None:
        made.update(made.gradients([batch], facts, loss_terms(train, facts, on_policy=True)), 1e-6)

    step()  # the optimizer's state is made in the first step
    held = peak(step)
    taken = seconds(step, 5)
    return {"s": taken, "tokens_a_second": tokens / taken} | held
