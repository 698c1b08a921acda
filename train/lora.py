"""LoRA (arXiv 2106.09685) on Megatron's linears: y = W x + (alpha / rank) B A x, with W frozen.

The frozen model of Eq. 8 is then the policy with its adapters off: one model in memory instead of two. Each of Hugging
Face's projections has an adapter of its own, also where Megatron fuses several into one matrix, so that the adapters
are PEFT's. They are added by hooks: the model's own parameters keep their names and their places.

Under tensor parallelism B is split as a column-parallel linear's rows are, and A as a row-parallel linear's columns;
the other of the two is whole on every rank, and its gradient is the same there.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import dropout, linear

from ..store.architecture import Architecture, projection_sizes
from ..store.errors import InputError
from ..store.model import weights_hash
from ..store.sections import LoraConfig, TrainConfig
from . import mcore
from .hf_weights import fuse
from .mcore import parallel_state as mpu
from .model import Student

_LINEARS = {
    "self_attn": {"linear_qkv": ("q_proj", "k_proj", "v_proj"), "linear_proj": ("o_proj",)},
    "mlp": {"linear_fc1": ("gate_proj", "up_proj"), "linear_fc2": ("down_proj",)},
}
"""Megatron's linears of a layer, by Hugging Face's name of the block, and the projections that each is made of."""

_ROW_PARALLEL = ("o_proj", "down_proj")

_BASE = "base_weights"
"""In adapter_config.json: hash of the weights that the adapters belong to. PEFT ignores it."""


class Adapter(torch.nn.Module):
    """One projection's A [rank, inputs] and B [outputs, rank], or a tensor-parallel rank's slice of one of them."""

    def __init__(self, a_RI: Tensor, b_OR: Tensor, lora: LoraConfig, *, row: bool, sequence: bool) -> None:
        """
        Args:
            a_RI: this rank's A.
            b_OR: this rank's B.
            lora: its scale and dropout.
            row: it stands beside a row-parallel linear, whose input is split.
            sequence: activations between the linears are split over the sequence.
        """
        super().__init__()
        self.A, self.B = torch.nn.Parameter(a_RI), torch.nn.Parameter(b_OR)
        self.scale, self.dropout, self.row, self.sequence = lora.alpha / lora.rank, lora.dropout, row, sequence
        split, whole = (self.A, self.B) if row else (self.B, self.A)
        marks: Any = (split, whole)
        marks[0].tensor_model_parallel, marks[1].tensor_model_parallel = True, False
        # What is whole saw this rank's part of the sequence alone: Megatron adds its gradients up over the ranks.
        marks[1].sequence_parallel = sequence

    def forward(self, input_SBI: Tensor) -> Tensor:
        """What is added to this rank's output of the projection."""
        hidden_SBR = linear(dropout(input_SBI, self.dropout, self.training), self.A) * self.scale
        return linear(self._across_ranks(hidden_SBR), self.B)

    def _across_ranks(self, hidden_SBR: Tensor) -> Tensor:
        """As Megatron's own linears do with their inputs and outputs, but with `rank` features."""
        if self.row and self.sequence:
            return mcore.reduce_scatter_to_sequence_parallel_region(hidden_SBR)
        if self.row:
            return mcore.reduce_from_tensor_model_parallel_region(hidden_SBR)
        if self.sequence:
            return mcore.gather_from_sequence_parallel_region(hidden_SBR, tensor_parallel_output_grad=True)
        return mcore.copy_to_tensor_model_parallel_region(hidden_SBR)

    def delta(self) -> Tensor:
        """This rank's part of B A times the scale, float32 [outputs, inputs]."""
        return self.B.float() @ self.A.float() * self.scale


class Adapters(torch.nn.ModuleDict):
    """All adapters of a pipeline stage, by `LAYER-PROJECTION`; layers are numbered through the whole model."""

    off = False
    """Whether they add nothing: then the model is its base."""


def add_adapters(model: Student, train: TrainConfig) -> None:
    """Freeze a model whose weights are loaded, and give it adapters that add nothing yet: B is zero, as in the paper.

    A is drawn from train.seed, a layer and projection at a time, the same under every layout.
    """
    lora = train.lora
    assert lora is not None
    model.requires_grad_(False)
    adapters, sizes = Adapters(), projection_sizes(model.arch)
    sequence = model.config.sequence_parallel
    rank, ranks = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    device, dtype = next(model.parameters()).device, model.config.params_dtype
    for number, block, name, module in _linears(model):
        here = [target for target in _LINEARS[block][name] if target in lora.targets]
        for target in here:
            outputs, inputs = sizes[target]
            row = target in _ROW_PARALLEL
            place = number * len(sizes) + list(sizes).index(target)
            generator = torch.Generator().manual_seed(train.seed << 32 | place)
            # As PEFT does: uniform within 1 / sqrt(inputs).
            a_RI = torch.empty(lora.rank, inputs).uniform_(-1, 1, generator=generator) / math.sqrt(inputs)
            a_RI = a_RI.chunk(ranks, 1)[rank] if row else a_RI
            b_OR = torch.zeros(outputs if row else outputs // ranks, lora.rank)
            a_RI, b_OR = (tensor.to(device, dtype).contiguous() for tensor in (a_RI, b_OR))
            adapters[f"{number}-{target}"] = Adapter(a_RI, b_OR, lora, row=row, sequence=sequence)
        if here:
            module.register_forward_hook(_Addition(adapters, number, _LINEARS[block][name], _local(model.arch, ranks)))
    model.adapters = adapters
    embedding: Any = getattr(model, "embedding", None)
    if embedding is not None:
        # Recomputed layers get a gradient only if their input wants one, and the embedding is frozen.
        embedding.register_forward_hook(lambda _, __, out: out.requires_grad_() if torch.is_grad_enabled() else out)


class _Addition:
    """Forward hook of a linear: adds what the adapters of its projections make of its input."""

    def __init__(self, adapters: Adapters, number: int, targets: tuple[str, ...], arch: Architecture) -> None:
        self.adapters, self.number, self.targets, self.arch = adapters, number, targets, arch

    def __call__(self, module: Any, args: tuple[Any, ...], output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        if self.adapters.off:
            return output
        out, bias = output
        parts = [
            self.adapters[f"{self.number}-{target}"](args[0])
            if f"{self.number}-{target}" in self.adapters
            else out.new_zeros(*out.shape[:-1], projection_sizes(self.arch)[target][0])
            for target in self.targets
        ]
        return out + _side_by_side(parts, self.arch), bias


def _side_by_side(parts: list[Tensor], arch: Architecture) -> Tensor:
    """Outputs of the projections in the order that Megatron's fused linear has them (hf_weights.fuse)."""
    if len(parts) < 3:
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]
    grouped = [part.unflatten(-1, (arch.groups, -1)) for part in parts]
    return torch.cat(grouped, -1).flatten(-2)


def _local(arch: Architecture, ranks: int) -> Architecture:
    """The part of a layer that a tensor-parallel rank has."""
    return dataclasses.replace(arch, heads=arch.heads // ranks, groups=arch.groups // ranks, ffn=arch.ffn // ranks)


def _linears(model: Student) -> Iterator[tuple[int, str, str, Any]]:
    """Each linear of this stage: number of its layer, Hugging Face's block, Megatron's name, module."""
    layers: Any = model.decoder.layers
    for layer in layers:
        for block, names in _LINEARS.items():
            inside = layer.self_attention if block == "self_attn" else layer.mlp
            for name in names:
                yield layer.layer_number - 1, block, name, getattr(inside, name)


@contextlib.contextmanager
def base_of(model: Student) -> Generator[Student]:
    """The model with its adapters off: what it was before it was trained."""
    adapters = cast(Adapters, model.adapters)
    adapters.off = True
    try:
        yield model
    finally:
        adapters.off = False


@torch.no_grad()
def merge(model: Student) -> None:
    """Add the adapters into the weights, for good: in float32, rounded once to the weights' precision."""
    adapters = cast(Adapters, model.adapters)
    ranks = mpu.get_tensor_model_parallel_world_size()
    arch = _local(model.arch, ranks)
    for number, block, name, module in _linears(model):
        sizes = projection_sizes(arch)
        if not any(f"{number}-{target}" in adapters for target in _LINEARS[block][name]):
            continue
        deltas = [
            cast(Adapter, adapters[f"{number}-{target}"]).delta()
            if f"{number}-{target}" in adapters
            else torch.zeros(sizes[target], device=module.weight.device)
            for target in _LINEARS[block][name]
        ]
        module.weight.copy_(module.weight.float() + fuse(f"{name}.weight", deltas, arch))
    adapters.off = True


# -- PEFT's files


def _peft_name(key: str, which: str) -> str:
    number, target = key.split("-")
    block = next(block for block, names in _LINEARS.items() if any(target in targets for targets in names.values()))
    return f"base_model.model.model.layers.{number}.{block}.{target}.lora_{which}.weight"


def write_adapters(model: Student, lora: LoraConfig, base: Path, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors. Collective; rank 0 writes.

    Args:
        model: this rank's part of the policy.
        lora: its settings.
        base: folder of the initial student, which the adapters belong to.
        folder: is made.
    """
    stages: list[Any] = [None] * mpu.get_pipeline_model_parallel_world_size()
    dist.all_gather_object(stages, adapter_tensors(model, "data"), group=mpu.get_pipeline_model_parallel_group())
    if dist.get_rank() > 0:
        return
    from safetensors.torch import save_file

    folder.mkdir()
    tensors = {name: tensor for stage in stages for name, tensor in stage.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "base_model_name_or_path": str(base),
        "r": lora.rank, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": sorted(lora.targets),
        "bias": "none", "fan_in_fan_out": False, _BASE: weights_hash(base),
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def adapter_tensors(model: Student, attribute: Literal["data", "main_grad"]) -> dict[str, Tensor]:
    """This stage's adapters, or their summed gradients, whole, by PEFT's names, on the CPU. Collective over tensor
    ranks."""
    tensors: dict[str, Tensor] = {}
    for key, adapter in cast("dict[str, Adapter]", model.adapters).items():
        for which, parameter, split in (("A", adapter.A, adapter.row), ("B", adapter.B, not adapter.row)):
            value = getattr(parameter, attribute)
            tensors[_peft_name(key, which)] = _gathered(value, 1 if which == "A" else 0) if split else value.cpu()
    return tensors


def _gathered(value: Tensor, axis: int) -> Tensor:
    """A split tensor, whole, on the CPU. Collective over tensor ranks."""
    slices = [torch.empty_like(value) for _ in range(mpu.get_tensor_model_parallel_world_size())]
    dist.all_gather(slices, value.contiguous(), group=mpu.get_tensor_model_parallel_group())
    return torch.cat(slices, axis).cpu().contiguous()


def check_adapters(folder: Path, lora: LoraConfig, base: Path) -> None:
    """
    Raises:
        InputError: a folder of adapters is missing, or they are of another shape or base.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise InputError(
            f"{folder.parent} has no adapters, and train.lora goes on from those of the round before.",
            "Unset train.lora, as in that round, or start a new run.",
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    if found.get(_BASE) != weights_hash(base):
        raise InputError(
            f"The adapters of {folder} belong to another model than {base}.", "Set student.model back to the first one."
        )
    now = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": sorted(lora.targets)}
    changed = [key for key, value in now.items() if found[key] != value]
    if changed:
        was = ", ".join(f"{key} = {found[key]}" for key in changed)
        raise InputError(f"The adapters of {folder} have {was}, and train.lora says otherwise.", "Set train.lora back.")


@torch.no_grad()
def load_adapters(model: Student, folder: Path) -> None:
    """Fill the adapters from a folder that `check_adapters` has seen."""
    from safetensors import safe_open

    rank, ranks = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    with safe_open(folder / "adapter_model.safetensors", "pt") as tensors:
        for key, adapter in cast("dict[str, Adapter]", model.adapters).items():
            a_RI, b_OR = (tensors.get_tensor(_peft_name(key, which)) for which in "AB")
            adapter.A.copy_(a_RI.chunk(ranks, 1)[rank] if adapter.row else a_RI)
            adapter.B.copy_(b_OR if adapter.row else b_OR.chunk(ranks)[rank])


def sharded_adapters(model: Student) -> dict[str, Any]:
    """The adapters as Megatron's checkpoints take them."""
    state: dict[str, Any] = {}
    for key, adapter in cast("dict[str, Adapter]", model.adapters).items():
        prefix = f"adapters.{key}."
        state |= mcore.make_sharded_tensors_for_checkpoint(
            adapter.state_dict(prefix="", keep_vars=True), prefix, {"A": 1} if adapter.row else {"B": 0}
        )
    return state
