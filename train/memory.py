# pyright: strict
"""How much memory a rank needs, from the shapes alone: asked before the first step, where a fix costs nothing.

Estimates from below: what is counted is needed for certain, and what a kernel or an allocator takes beside it is not
counted. All in bytes, for the pipeline stage that needs most.
"""

from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

from ..store.architecture import Architecture, projection_sizes
from ..store.errors import InputError
from ..store.sections import LoraConfig, TrainConfig

LOSS_BLOCK = 16384
"""Columns of the vocabulary that the loss works on at a time, so that no temporary is as large as the logits."""


def loss_bytes(
    tokens: int,
    vocabulary: int,
    hidden: int,
    *,
    rows: int,
    parameter_bytes: int,
    trained_head: bool = True,
    fused: bool = False,
) -> int:
    """What the fused loss (forward and backward) takes above its inputs, with a reference.

    The gradient of the head in float32 and of the hidden states in the parameters' precision; with them, first two
    buffers of logits and two blocks of them in float32, below float32 also the logits' rounded gradient, and then the
    head's rounded gradient.

    Args:
        tokens: rows of hidden states, weighted or not.
        vocabulary: size of the vocabulary, or of a tensor-parallel rank's slice.
        hidden: size of a hidden state.
        rows: train.loss_rows.
        parameter_bytes: bytes of a parameter.
        trained_head: the head gets a gradient.
        fused: the lines over logits are one kernel each, as on CUDA, and take no blocks.
    """
    rows = min(rows, tokens)
    head = vocabulary * hidden if trained_head else 0
    block = 0 if fused else min(vocabulary, LOSS_BLOCK)
    rounded = parameter_bytes if parameter_bytes < 4 else 0
    logits = 4 * 2 * rows * (vocabulary + block) + rounded * vocabulary * rows
    return 4 * head + parameter_bytes * tokens * hidden + max(logits, rounded * head)


@dataclass(frozen=True)
class Need:
    """Bytes by what they are for."""

    weights: int
    """Policy and frozen model."""
    gradients: int
    optimizer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.loss

    def __str__(self) -> str:
        return ", ".join(f"{name} {gigabytes(size)}" for name, size in asdict(self).items())


def training_need(
    arch: Architecture,
    train: TrainConfig,
    *,
    processes: int,
    longest: int,
    frozen: Architecture | None,
    fused: bool = False,
) -> Need:
    """What a step on the longest sequences takes.

    Args:
        arch: the student.
        frozen: the model beside it, which may be larger: the teacher of opd.
        train: the [train] section, `on` the device.
        processes: trainer processes.
        longest: tokens of the longest sequence.
        fused: SwiGLU is one kernel, as on CUDA, and keeps its input alone; so are the loss's lines over logits.
    """
    tensor, pipeline, context = train.tensor_parallel, train.pipeline_parallel, train.context_parallel
    size = 2 if train.precision == "bf16" else 4
    layers = arch.layers // pipeline
    parameters = _stage_parameters(arch, train)
    shared = processes // (tensor * pipeline) if train.distributed_optimizer else 1
    tokens = _longest_micro_batch(train, -(-longest // context), processes)
    if train.lora is None:
        trained, twin = parameters, 0 if frozen is None else _stage_parameters(frozen, train)
    else:
        trained, twin = adapter_parameters(arch, train.lora) // pipeline // tensor, 0
    # The last stage, which has the loss, is done with a micro-batch before it takes the next.
    loss = loss_bytes(
        tokens, arch.vocabulary // tensor, arch.hidden, rows=train.loss_rows, parameter_bytes=size,
        trained_head=train.lora is None, fused=fused,
    )  # fmt: skip
    return Need(
        weights=(parameters + twin) * size,
        gradients=trained * 4,
        optimizer=trained * (8 if size == 4 else 12) // shared,
        activations=_activations(arch, train, tokens, layers, size, 3 if fused else 5, loss),
        loss=loss,
    )


def _longest_micro_batch(train: TrainConfig, longest: int, processes: int) -> int:
    """Tokens of a micro-batch of the longest sequences on a rank, whose pieces of them have `longest` tokens."""
    if train.micro_tokens is None:
        return train.micro_batch * longest
    ranks = processes // (train.tensor_parallel * train.pipeline_parallel * train.context_parallel)
    of_a_rank = -(-train.global_batch // max(1, ranks))
    return longest * max(1, min(train.micro_tokens // longest, of_a_rank))


def adapter_parameters(arch: Architecture, lora: LoraConfig) -> int:
    """Trained parameters, over all layers."""
    return arch.layers * lora.rank * sum(sum(projection_sizes(arch)[target]) for target in lora.targets)


def _stage_parameters(arch: Architecture, train: TrainConfig) -> int:
    """Parameters of the layers of a pipeline stage and of one embedding, or of two, on one rank."""
    pipeline, tensor = train.pipeline_parallel, train.tensor_parallel
    layers = sum(prod(shape) for name, shape in arch.shapes().items() if ".layers." in name)
    embedding = arch.vocabulary * arch.hidden // tensor
    # Embedding and head are on the first and the last stage: together only without a pipeline, where a tied one is one.
    return layers // pipeline // tensor + embedding * (1 if arch.tied or pipeline > 1 else 2)


def _activations(
    arch: Architecture, train: TrainConfig, tokens: int, layers: int, size: int, ffn: int, loss: int
) -> int:
    """What the backward pass keeps of the forward pass.

    Args:
        ffn: activations of the feed-forward's width.
        loss: bytes of the loss, where a layer is recomputed once these are free.
    """
    query, key = arch.heads * arch.head_dim, arch.groups * arch.head_dim
    split = train.tensor_parallel
    whole = split if train.sequence_parallel else 1  # what tensor parallelism alone does not split
    # Inputs of the norms and of the projections; queries, keys and values before and after rotation, the attention's
    # output; gate and up projection and their product, and where it is not fused the activation and its input.
    layer = tokens * size * (4 * arch.hidden // whole + (3 * query + 4 * key + ffn * arch.ffn) // split)
    if not train.recompute:
        return layer * layers
    return tokens * size * (arch.hidden // whole) * layers + max(0, layer - loss)


def checkpoint_bytes(arch: Architecture, train: TrainConfig) -> int:
    """Disk that a round's checkpoints take while the newest is written, and the policy that is written at its end.

    A checkpoint holds the weights, and two moments in float32; below float32 the float32 weights too.
    """
    parameters = sum(prod(shape) for shape in arch.shapes().values())
    trained = parameters if train.lora is None else adapter_parameters(arch, train.lora)
    size = 2 if train.precision == "bf16" else 4
    each = trained * (size + 8 + (4 if size < 4 else 0))
    return (train.keep_checkpoints + 1) * each + parameters * size


def check_disk(need: int, free: int, folder: Path) -> None:
    """
    Raises:
        InputError: a checkpoint would not fit.
    """
    if need > free:
        raise InputError(
            f"The round's checkpoints and policy take {gigabytes(need)} GB, and {folder} has {gigabytes(free)} free.",
            "Free some, set train.keep_checkpoints lower, or move the run to a larger disk.",
        )


def check_memory(need: Need, available: int) -> None:
    """
    Raises:
        InputError: a step needs more than there is.
    """
    if need.total <= available:
        return
    hints = {
        "activations": "Set train.micro_batch = 1 (or train.micro_tokens lower) or train.recompute = true, or"
        " train.context_parallel higher",
        "loss": "Set train.loss_rows lower or train.tensor_parallel higher",
        "optimizer": "Set train.tensor_parallel or train.pipeline_parallel higher, or"
        " train.distributed_optimizer = true where there are several data-parallel ranks",
    }
    largest = max(hints, key=lambda name: asdict(need)[name])
    raise InputError(
        f"A step needs at least {gigabytes(need.total)} GB on each rank ({need}), and there are"
        f" {gigabytes(available)}.",
        f"{hints[largest]}.",
    )


def out_of_memory(said: str, rank: int) -> InputError:
    """What a user is told where a step needs more than `check_memory` has counted.

    Args:
        said: by the allocator of a GPU.
    """
    return InputError(
        f"Rank {rank} has no GPU memory left: {said.partition(' If reserved')[0].rstrip('. ')}.",
        "Set train.micro_batch = 1 (or train.micro_tokens lower), train.recompute = true, train.loss_rows lower or"
        " train.tensor_parallel higher, and see with nvidia-smi what else is on the GPU.",
    )


def gigabytes(size: int) -> str:
    """Bytes as a number of GB for people, in three figures."""
    return f"{size / 1e9:.3g}"
