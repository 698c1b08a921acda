"""AdamW through Megatron, its state whole on every data-parallel rank or split over them.

Megatron's distributed optimizer expects the fused Adam of Transformer Engine or Apex, whose step count belongs to a
group of parameters. torch's AdamW stands in where neither is installed, and counts for each parameter, and has no state
before its first step: `prepare_to_load` makes it one.
"""

from typing import Any

import torch

from ..store.sections import TrainConfig
from . import mcore

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_optimizer(ddp: mcore.DistributedDataParallel, config: TrainConfig) -> mcore.MegatronOptimizer:
    """The optimizer of a model's parameters; its main weights and moments are float32 at any precision."""
    optimizer = mcore.get_megatron_optimizer(
        mcore.OptimizerConfig(
            optimizer="adam",
            lr=config.lr,
            weight_decay=config.weight_decay,
            clip_grad=config.clip_grad,
            bf16=config.precision == "bf16",
            params_dtype=PRECISIONS[config.precision],
            use_distributed_optimizer=config.distributed_optimizer,
        ),
        [ddp],
        use_gloo_process_groups=False,
    )
    for adam in _torch_optimizers(optimizer):
        for group in adam.param_groups:
            # One kernel for all, and not several that hand a copy of every parameter on to the next.
            if group["params"] and group["params"][0].is_cuda:
                group |= {"fused": True, "foreach": False}
    return optimizer


def _torch_optimizers(optimizer: mcore.MegatronOptimizer) -> list[torch.optim.AdamW]:
    parts: list[Any] = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in parts if isinstance(part.optimizer, torch.optim.AdamW)]


def prepare_to_load(optimizer: mcore.MegatronOptimizer) -> None:
    """Get an optimizer that has made no step ready to load a checkpoint's state."""
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        if isinstance(part, mcore.DistributedOptimizer) and isinstance(part.optimizer, torch.optim.AdamW):
            _prepare(part, part.optimizer)


def _prepare(part: Any, adam: torch.optim.AdamW) -> None:
    # The description of what to load is made from the state, and asserts that there is one.
    for group in adam.param_groups:
        for parameter in group["params"]:
            adam.state[parameter] = {
                "step": torch.zeros((), device=parameter.device if group.get("fused") else "cpu"),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
