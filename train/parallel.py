"""Process groups: one process alone, or the ranks that torchrun started. Set up for one round, taken down after it."""

import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _abort_process_group

from ..store.errors import ConfigError, OmniopdError
from ..store.sections import TrainConfig
from . import mcore
from .cpu import cuda_means_cpu
from .mcore import parallel_state as mpu
from .share import Share

T = TypeVar("T")

_LENGTH_BUCKET = 256
"""Tokens. A plan of cuDNN's for a length that was not seen before took 150 ms on an H100, and attention over 4,096
tokens one (docs/experiments.md)."""

_PATIENCE = timedelta(days=1)
"""How long ranks wait for one that downloads, hashes, or writes files. NCCL's groups give up after 10 minutes, gloo's
after 30."""

_SMALL = 20_000_000
"""Parameters below which more than one CPU thread costs more than it gains."""


_patient: dist.ProcessGroup | None = None
"""All ranks, on the CPU, for work of one rank that takes long."""


def patient_group() -> dist.ProcessGroup:
    """All ranks of `world`, in a group of gloo that waits for a day. For objects, not for tensors of a GPU."""
    assert _patient is not None
    return _patient


def processes() -> int:
    """Ranks of this job, as torchrun says; 1 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Rank of this process, as torchrun says; 0 outside torchrun."""
    return int(os.environ.get("RANK", "0"))


@contextlib.contextmanager
def world() -> Generator[torch.device]:
    """A process group over all ranks, and the device of this one.

    A process on its own needs no port and no torchrun. When the `with` ends no trace of it is left, so that a program
    can train one round after the other, and sample in between. A group that exists is used as it is, with the GPU that
    whoever made it has chosen, and stays.

    Raises:
        ConfigError: there are GPUs, but none for this rank.
    """
    given = dist.is_initialized()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device() if given else _own_gpu())
        torch.cuda.set_device(device)
    try:
        with _groups(device, given=given):
            yield device
    finally:
        # A round's model is a circle of references, and its memory the allocator's: an engine in another process (vLLM)
        # would find none.
        gc.collect()
        torch.cuda.empty_cache()


def _own_gpu() -> int:
    gpu, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if gpu >= there:
        raise ConfigError(
            f"Process {gpu} of this machine needs a GPU of its own, and sees {there}.",
            f"Start {there} at most (--nproc-per-node), and let each see all GPUs of the machine.",
        )
    return gpu


@contextlib.contextmanager
def _groups(device: torch.device, *, given: bool) -> Generator[None]:
    """The group over all ranks, unless it is given, and the patient one beside it."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    with cuda_means_cpu(), warnings.catch_warnings():
        # Megatron warns of settings that matter for speed on CUDA, and calls parts of torch that are being renamed.
        warnings.filterwarnings("ignore", module="megatron")
        warnings.simplefilter("ignore", FutureWarning)
        # The distributed optimizer asks for it on purpose; the stand-ins make the warning look as if it were ours.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        if given:
            pass
        elif processes() == 1:
            alone = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group(backend, store=alone, rank=0, world_size=1)
        else:
            dist.init_process_group(backend)
        global _patient
        _patient = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=_PATIENCE))
        try:
            yield
        except BaseException:
            # An orderly end would wait for collectives that the other ranks are in, and they for this one: until NCCL's
            # timeout, with the error still to be told.
            if not given:
                _abort_process_group()
            raise
        else:
            if not given:
                dist.destroy_process_group()
        finally:
            _patient = None


@contextlib.contextmanager
def model_parallel(config: TrainConfig) -> Generator[None]:
    """Megatron's process groups for the layout of [train]. `architecture.check_layout` was asked before."""
    mpu.initialize_model_parallel(
        config.tensor_parallel,
        config.pipeline_parallel,
        context_parallel_size=config.context_parallel,
        create_gloo_process_groups=False,
    )
    try:
        with torch.random.fork_rng(devices=[]):
            # No layer draws random numbers (there is no dropout): one seed for all ranks does, and for CUDA the tracker
            # that saves no states.
            torch.manual_seed(config.seed)
            mcore.model_parallel_cuda_manual_seed(config.seed, inference_rng_tracker=True)
            yield
    finally:
        mpu.destroy_model_parallel()


def on_device(train: TrainConfig, device: torch.device) -> TrainConfig:
    """[train] with what depends on the device filled in.

    Raises:
        ConfigError: the device does not do what it says.
    """
    cuda = device.type == "cuda"
    return train.on(cuda=cuda, bf16=cuda and torch.cuda.is_bf16_supported(including_emulation=False))


@contextlib.contextmanager
def repeatable(train: TrainConfig) -> Generator[None]:
    """Kernels that give the same bits each time, if [train] asks for them. On a CPU all do."""
    if not train.deterministic:
        yield
        return
    # Read when cuBLAS makes its handle.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    fills = torch.utils.deterministic.fill_uninitialized_memory  # pyright: ignore[reportAttributeAccessIssue]
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fills  # pyright: ignore[reportAttributeAccessIssue]


def share(config: TrainConfig) -> Share:
    """This rank's share of a global batch."""
    return Share(
        rank=mpu.get_data_parallel_rank(),
        ranks=mpu.get_data_parallel_world_size(),
        context_rank=mpu.get_context_parallel_rank(),
        context_ranks=config.context_parallel,
        multiple=config.tensor_parallel if config.sequence_parallel else 1,
        bucket=_LENGTH_BUCKET if torch.cuda.is_available() else 1,
    )


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether a flag is set on any rank. Collective."""
    found = torch.tensor(int(flag), device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found)


def least_memory(device: torch.device) -> int:
    """Bytes that the rank with the least of them can have. Collective."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # the allocator's cache
    else:
        import psutil

        free = psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    least = torch.tensor(free, device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return int(least)


@contextlib.contextmanager
def few_threads(parameters: int) -> Generator[None]:
    """One CPU thread for a small model, for the length of a `with`."""
    before = torch.get_num_threads()
    if parameters < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def on_first_rank(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and give every rank its result, or raise its error on every rank. Collective.

    It may take long: the others wait in `patient_group`. The result is pickled. Errors that a user cannot fix end
    rank 0 alone, and torchrun then ends the others.
    """
    outcome = [_try(work) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(outcome, src=0, group=patient_group())
    return _result_of(outcome, 0)


def on_each_node(work: Callable[[], T]) -> T:
    """Run `work` on the first rank of each machine and give the machine's ranks its result. Collective.

    Raises:
        OmniopdError: on every rank, what it raised on any machine.
    """
    first = dist.get_rank() - int(os.environ.get("LOCAL_RANK", "0"))
    outcomes: list[_Outcome[T] | None] = [None] * dist.get_world_size()
    mine = _try(work) if dist.get_rank() == first else None
    dist.all_gather_object(outcomes, mine, group=patient_group())
    return _result_of(outcomes, first)


@dataclass(frozen=True)
class _Outcome(Generic[T]):
    """What work of one rank came to."""

    result: T | None
    error: tuple[type[OmniopdError], str, str] | None


def _try(work: Callable[[], T]) -> _Outcome[T]:
    try:
        return _Outcome(work(), None)
    except OmniopdError as error:
        return _Outcome(None, (type(error), error.problem, error.hint))


def _result_of(outcomes: Sequence[_Outcome[T] | None], rank: int) -> T:
    """The result of a rank, if none of the ranks failed."""
    for outcome in outcomes:
        if outcome is not None and outcome.error is not None:
            kind, problem, hint = outcome.error
            raise kind(problem, hint)
    found = outcomes[rank]
    assert found is not None
    return cast(T, found.result)


def wait_for_all() -> None:
    """A barrier at which ranks may be late: one of them writes files. Collective."""
    dist.barrier(group=patient_group())
