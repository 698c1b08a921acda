"""Megatron-Core on a machine without CUDA.

Megatron-Core 0.16 names CUDA in its own code even where nothing needs it: tensors are made with device="cuda",
gradients must be of type torch.cuda.FloatTensor, and activation recomputation saves CUDA's random state.
`cuda_means_cpu` makes these mean the CPU while it is active, and changes nothing where CUDA is there.
"""

import contextlib
from collections.abc import Callable, Generator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from . import mcore


@contextlib.contextmanager
def cuda_means_cpu() -> Generator[None]:
    """Let Megatron run on the CPU for the length of a `with`."""
    if torch.cuda.is_available():
        yield
        return
    with contextlib.ExitStack() as stack:
        for name, stand_in in _TORCH_CUDA.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mock.patch.object(mcore.random, "_get_cuda_rng_state", _get_rng_state))
        stack.enter_context(mock.patch.object(mcore.random, "_set_cuda_rng_state", _set_rng_state))
        stack.enter_context(_CudaMeansCpu())
        yield


def without_stand_ins() -> contextlib.AbstractContextManager[None]:
    """Lift the interception of torch's functions where nothing names CUDA; it costs some microseconds a call."""
    return torch._C.DisableTorchFunction()


class _CudaMeansCpu(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        kwargs.pop("pin_memory", None)  # there is nothing to copy to
        if "device" in kwargs and str(kwargs["device"]).startswith("cuda"):
            kwargs["device"] = "cpu"
        if func is torch.Tensor.cuda:
            return args[0]
        result = func(*args, **kwargs)
        if func is torch.Tensor.type and isinstance(result, str):
            return result.replace("torch.", "torch.cuda.", 1)
        return result


def _get_rng_state(*_: Any, **__: Any) -> torch.Tensor:
    return torch.get_rng_state()


def _set_rng_state(state: torch.Tensor, *_: Any, **__: Any) -> None:
    torch.set_rng_state(state)


_TORCH_CUDA: dict[str, Callable[..., Any]] = {
    "current_device": lambda: "cpu",
    "synchronize": lambda *_, **__: None,
    "empty_cache": lambda: None,
    "get_rng_state": _get_rng_state,
}
