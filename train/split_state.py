"""The split optimizer's state in a checkpoint: each rank writes and reads its own part of it, in place.

Megatron's distributed optimizer gives a rank a flat range of each parameter. Its own format that any layout can read
(fully_reshardable) gathers whole parameters first, on every rank: 36 bytes of host memory a parameter, measured. But a
flat range of a matrix is at most three rectangles (the rest of a row, whole rows, the start of a row), and rectangles
are what torch.distributed.checkpoint writes from any rank and reads into any other cut. So nothing is gathered or
copied; on the disk are the keys and shapes of Megatron's format.
"""

from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

from torch import Tensor

from . import mcore
from .optimizer import prepare_to_load

_MASTER = "param"
"""Megatron's name for a parameter in the optimizer's precision."""


def split_part(optimizer: mcore.MegatronOptimizer) -> Any | None:
    """The distributed optimizer in a model's optimizer, or None where the state is whole on every rank."""
    parts: list[Any] = getattr(optimizer, "chained_optimizers", [optimizer])
    return parts[0] if len(parts) == 1 and isinstance(parts[0], mcore.DistributedOptimizer) else None


def split_state(part: Any, model: dict[str, Any], *, loading: bool) -> dict[str, Any]:
    """A distributed optimizer's state as Megatron's checkpoints take it.

    Args:
        part: the distributed optimizer.
        model: the model's sharded state.
        loading: what is to be filled. The tensors are the optimizer's own, so that loading fills these.
    """
    if loading:
        prepare_to_load(part)
    places = {id(place.data): place for place in model.values()}
    state: dict[str, Any] = {}
    for parameter, start, stop in _ranges(part):
        place = places[id(parameter)]
        whole: Any = place.build() if isinstance(place, mcore.ShardedTensorFactory) else [place]
        for name, flat in part._get_main_param_and_optimizer_states(parameter).items():
            # The step is the same for all and among the groups' settings; float32 parameters are their own masters.
            if name == "step" or (name == _MASTER and parameter.dtype == flat.dtype):
                continue
            for tensor in _rectangles(whole, flat.detach(), start, stop):
                key = f"optimizer.state.{name}.{tensor.key}"
                owner = (*tensor.replica_id[:2], part.distributed_optimizer_instance_id)
                state[f"{key}@{tensor.global_offset}"] = replace(tensor, key=key, replica_id=owner)
    return {"settings": part.state_dict(), "tensors": state}


def after_loading(part: Any, settings: dict[str, Any]) -> None:
    """Give the optimizer, whose tensors are loaded, the settings of its groups and its step."""
    part.load_state_dict(settings)
    for state in part.optimizer.state.values():
        if "step" in state:
            # Megatron gives all parameters one counter, which each would advance.
            state["step"] = state["step"].clone()


def _ranges(part: Any) -> Iterator[tuple[Any, int, int]]:
    """Each parameter that this rank has a share of, and which of its elements, flat."""
    for buffer in part.gbuf_ranges:
        for buckets in buffer.values():
            for bucket in buckets:
                for parameter, ranges in bucket["param_map"].items():
                    yield parameter, ranges["param"].start, ranges["param"].end


def _rectangles(whole: list[Any], flat: Tensor, start: int, stop: int) -> Iterator[Any]:
    """Sharded tensors that make up `flat`, elements [start, stop) of the tensors `whole` one behind the other.

    Two of them are a gate and an up projection, which Megatron keeps in one parameter and two places of the checkpoint.
    """
    begin = 0
    for tensor in whole:
        end = begin + prod(tensor.local_shape)
        low, high = max(start, begin), min(stop, end)
        width = tensor.local_shape[-1] if len(tensor.local_shape) > 1 else 1
        while low < high:
            row, column = divmod(low - begin, width)
            # What is left of a row that was begun, all whole rows, or the start of the last one.
            count = width - column if column or high - low < width else (high - low) // width * width
            count = min(count, high - low)
            yield _rectangle(tensor, flat[low - start : low - start + count], row, column, min(count, width))
            low += count
        begin = end


def _rectangle(tensor: Any, flat: Tensor, row: int, column: int, width: int) -> Any:
    """The part of a sharded tensor that begins at a row and column of it. A vector has rows of one element."""
    rows = len(flat) // width
    front = tensor.prepend_axis_num  # the layer's axis, which the local tensor does not have
    offset, shape = list(tensor.global_offset), [1] * front
    offset[front] += row
    if len(tensor.local_shape) > 1:
        offset[-1] += column
        shape += [rows, width]
    else:
        shape.append(rows)
    return replace(
        tensor, data=flat.view(shape), dtype=flat.dtype, local_shape=tuple(shape), global_offset=tuple(offset),
        axis_fragmentations=None, prepend_axis_num=0,
    )  # fmt: skip
