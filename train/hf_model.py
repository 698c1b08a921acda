"""A student's weights from and to Hugging Face folders, a parameter at a time: no rank ever holds a whole model.

Each pipeline stage writes its own files, of at most `FILE_BYTES` or one tensor, and an index names them all.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from .hf_weights import WeightFiles, fuse, hf_names, is_split, shard, unfuse, unshard
from .mcore import parallel_state as mpu
from .model import Student

FILE_BYTES = 2 * 10**9
"""Largest file of a policy, and most of what a rank holds in host memory while it writes one."""


def _parameters(model: Student) -> Iterator[tuple[str, torch.nn.Parameter, list[str]]]:
    """Each parameter of this rank with its name and the Hugging Face weights that it is made of."""
    layers: Any = model.decoder.layers
    first_layer = layers[0].layer_number - 1
    for name, parameter in model.named_parameters():
        if name.startswith("adapters."):
            continue
        yield name, parameter, hf_names(name, first_layer, model.arch.tied)


@torch.no_grad()
def load_weights(model: Student, files: WeightFiles) -> None:
    """Fill a model from Hugging Face weights whose shapes were checked."""
    rank, ranks = mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size()
    for name, parameter, sources in _parameters(model):
        whole = fuse(name, [files.tensor(source) for source in sources], model.arch)
        parameter.copy_(shard(name, whole, model.arch, rank, ranks))


def hf_gradients(model: Student) -> dict[str, Tensor]:
    """This stage's summed gradients under Hugging Face's names, where the optimizer is not distributed. Collective."""
    parts = _stream(model, lambda parameter: cast(Any, parameter).main_grad)
    return {name: tensor for part in parts for name, tensor in part.items()}


@torch.no_grad()
def _stream(model: Student, value: Callable[[torch.nn.Parameter], Tensor]) -> Iterator[dict[str, Tensor]]:
    """A value of each parameter of this stage, by Hugging Face's names, on the CPU. Collective over tensor ranks."""
    ranks = mpu.get_tensor_model_parallel_world_size()
    for name, parameter, sources in _parameters(model):
        # The last stage's copy of a tied embedding has the first stage's name and value.
        if model.arch.tied and name == "output_layer.weight":
            continue
        slices = [value(parameter).detach().contiguous()]
        if ranks > 1 and is_split(name):
            mine = slices[0]
            slices = [torch.empty_like(mine) for _ in range(ranks)]
            dist.all_gather(slices, mine, group=mpu.get_tensor_model_parallel_group())
        parts = unfuse(name, unshard(name, slices, model.arch), model.arch)
        yield {source: part.cpu() for source, part in zip(sources, parts, strict=True)}


def write_weights(model: Student, folder: Path) -> None:
    """Write safetensors that transformers reads. Collective; `folder` exists.

    The weights keep the precision that they were trained in. A student that came as bfloat16 and is trained in float32
    is written as float32: at a learning rate of 1e-6 a round moves most weights by less than bfloat16 can hold, and
    the rounds would train nothing.

    Args:
        model: this rank's part of the student.
        folder: seen by all ranks.
    """
    if mpu.get_data_parallel_rank(with_context_parallel=True) > 0:
        return
    plan = _plan_files(model)
    plans: list[Any] = [None] * mpu.get_pipeline_model_parallel_world_size()
    dist.all_gather_object(plans, plan, group=mpu.get_pipeline_model_parallel_group())
    stage = mpu.get_pipeline_model_parallel_rank()
    count, first = sum(map(len, plans)), sum(map(len, plans[:stage]))
    files = [_file_name(number, count) for number in range(count)]
    _write_files(model, folder, files[first : first + len(plan)], plan)
    if count > 1 and stage == mpu.get_tensor_model_parallel_rank() == 0:
        _write_index([sizes for plan in plans for sizes in plan], files, folder)


def _file_name(number: int, count: int) -> str:
    return f"model-{number + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


def _plan_files(model: Student) -> list[dict[str, int]]:
    """Which weights of this stage share a file, and their bytes."""
    shapes, plan, filled = model.arch.shapes(), list[dict[str, int]](), 0
    for name, parameter, sources in _parameters(model):
        if model.arch.tied and name == "output_layer.weight":
            continue
        sizes = {source: torch.Size(shapes[source]).numel() * parameter.element_size() for source in sources}
        if not plan or filled + sum(sizes.values()) > FILE_BYTES:
            plan.append({})
            filled = 0
        plan[-1] |= sizes
        filled += sum(sizes.values())
    return plan


def _write_files(model: Student, folder: Path, files: list[str], plan: list[dict[str, int]]) -> None:
    from safetensors.torch import save_file

    writes = mpu.get_tensor_model_parallel_rank() == 0
    stream = _stream(model, lambda parameter: parameter)
    for file, sizes in zip(files, plan, strict=True):
        tensors: dict[str, Tensor] = {}
        missing = len(sizes)
        while missing:
            part = next(stream)
            missing -= len(part)
            if writes:
                tensors |= part
        if writes:
            save_file(tensors, folder / file, metadata={"format": "pt"})


def _write_index(sizes: list[dict[str, int]], files: list[str], folder: Path) -> None:
    """model.safetensors.index.json."""
    weight_map = {name: file for file, part in zip(files, sizes, strict=True) for name in part}
    total = sum(size for part in sizes for size in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
