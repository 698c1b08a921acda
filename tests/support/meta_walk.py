"""A step of the trainer at full size on device `meta`, as CUDA runs it, and the bytes that it holds at most.

Tensors of `meta` have shapes and no memory, so a model of billions of parameters takes seconds on any machine. What
follows the device in the trainer is told CUDA; the kernels that only CUDA has are stood in for by what they allocate.
"""

import contextlib
import weakref
from collections.abc import Callable, Generator
from typing import Any
from unittest import mock

import torch
from megatron.core.fusions import fused_bias_swiglu
from torch import Tensor
from torch.optim import adam
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from omniopd.store.architecture import Architecture
from omniopd.store.sections import TrainConfig
from omniopd.train import attention, loss, model, step
from omniopd.train.data import MicroBatch
from omniopd.train.lora import add_adapters
from omniopd.train.loss import LossRows
from omniopd.train.model import build
from omniopd.train.objective import loss_terms
from omniopd.train.parallel import model_parallel, world
from omniopd.train.step import Learner
from omniopd.train.weights import BatchFacts

META = torch.device("meta")
_IS_CUDA = torch.Tensor.is_cuda.__get__  # pyright: ignore[reportAttributeAccessIssue]


def peak_of_a_step(arch: Architecture, train: TrainConfig, tokens: int) -> int:
    """Bytes held at most in the second step, whose optimizer has its state: policy, reference, one sequence."""
    with world(), model_parallel(train), _cuda_is_meta():
        held = Held()
        with held:
            with torch.device(META):
                policy = build(arch, train, META)
                if train.lora is None:
                    reference = build(arch, train, META)
                else:
                    add_adapters(policy, train)
                    reference = policy
            learner = Learner(policy, reference, train, META)
            batch, facts = _micro_batch(tokens)
            for _ in range(2):
                held.most = held.now
                learner.update(learner.gradients([batch], facts, loss_terms(train, facts, on_policy=True)), 1e-6)
        return held.most


def _micro_batch(tokens: int) -> tuple[MicroBatch, BatchFacts]:
    audited = 500  # the paper's ten chunks of fifty
    row_T = torch.arange(tokens - 1)
    rows = LossRows(
        row_T[:audited], torch.zeros(audited, dtype=torch.int64), torch.ones(audited), torch.zeros(audited),
        row_T[audited:],
    )  # fmt: skip
    left = tokens - 1 - audited
    return MicroBatch(torch.zeros(1, tokens, dtype=torch.int64), rows), BatchFacts(
        audited, left, left, 0.5, 0.0, audited
    )


class Held(TorchDispatchMode):
    """Counts the storages of `meta` that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name == "aten::_local_scalar_dense" and args[0].is_meta:
            return 1.0 if args[0].is_floating_point() else 1
        if name == "aten::_fused_adamw_":
            return None
        if name == "aten::_to_copy" and torch.device(kwargs.get("device") or META).type == "cpu" and args[0].is_meta:
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        tree_map_only(Tensor, self._count, out)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if not tensor.is_meta or storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        weakref.finalize(storage, self._free, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _free(self, size: int) -> None:
        self.now -= size


class _CudaIsMeta(TorchFunctionMode):
    """Above the stand-ins of `train.cpu`, for which CUDA is the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _IS_CUDA:
            return args[0].is_meta
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return "torch.cuda." + torch.empty(0, dtype=args[0].dtype).type().rsplit(".", 1)[1]
        if func is torch.tensor and (norms := tree_leaves(args[0])) and isinstance(norms[0], Tensor):
            return torch.ones(len(norms))  # of the parameters' gradients
        if func is torch.nn.functional.rms_norm:
            return _Norm.apply(args[0], kwargs["weight"])
        if str(kwargs.get("device", "")).startswith("cuda"):
            kwargs["device"] = META
        return func(*args, **kwargs)


class _Flash(torch.autograd.Function):
    """What a flash kernel keeps: its inputs, its output and a number for each row of the scores."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])


class _Norm(torch.autograd.Function):
    """torch's RMSNorm on CUDA: one kernel, that keeps its input and a number for each row."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight, hidden.new_empty(hidden.shape[:-1], dtype=torch.float32))
        return torch.empty_like(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:2])


def _one_kernel_sums(sizes: int) -> Callable[..., Tensor]:
    def call(matrices: tuple[Tensor, ...], *_: Any) -> Tensor:
        return matrices[0].new_empty(*([sizes] if sizes > 1 else []), len(matrices[0]))

    return call


def _one_kernel(matrices: tuple[Tensor, ...], *_: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return matrices[0].new_empty(len(matrices[0])), torch.empty_like(matrices[0], dtype=dtype)


def _fused(make: Callable[..., Any]) -> Callable[..., Any]:
    """SwiGLU as one kernel, which Megatron compiles on CUDA."""

    def config(*arguments: Any) -> Any:
        made = make(*arguments)
        made.bias_activation_fusion = True
        return made

    return config


@contextlib.contextmanager
def _cuda_is_meta() -> Generator[None]:
    with contextlib.ExitStack() as stack:
        for where, name, stand_in in (
            (model, "_transformer_config", _fused(model._transformer_config)),
            (fused_bias_swiglu, "swiglu", lambda both: both.new_empty(*both.shape[:-1], both.shape[-1] // 2)),
            (fused_bias_swiglu, "swiglu_back", lambda grad, both: torch.empty_like(both)),
            (torch.cuda, "current_device", lambda: META),
            (torch.distributed, "all_reduce", lambda *_, **__: None),
            (step, "without_stand_ins", contextlib.nullcontext),
            (attention, "scaled_dot_product_attention", lambda q, k, v, **_: _Flash.apply(q, k, v)),
            (loss, "_sum_exp", _one_kernel_sums(1)),
            (loss, "_into_probs", _one_kernel),
            (loss, "_into_kl_gradient", _one_kernel),
            (adam, "_device_dtype_check_for_fused", lambda *_, **__: None),
        ):
            stack.enter_context(mock.patch.object(where, name, stand_in))
        stack.enter_context(_CudaIsMeta())
        yield
