"""What `omniopd plan` says of memory: which GPU holds a step of training, as the config has it and with a key changed.

The estimates are `train.memory`'s, for bfloat16 where `train.precision` leaves it open, as on a GPU.
"""

import shlex
from dataclasses import dataclass
from typing import Any

from ..method.objectives.registry import objective_of
from ..store.architecture import Architecture, check_layout, ranks, read_config_json
from ..store.config import Config, toml_value
from ..store.errors import InputError
from ..store.model import resolve_model
from ..store.sections import LoraConfig, TrainConfig
from ..train.memory import Need, checkpoint_bytes, gigabytes, training_need

_CARDS_GB = (16, 24, 40, 48, 80, 141, 180)
"""Memory of the GPUs that there are, as their makers give it."""

_COUNTED = 0.85
"""Least share of what a step takes that the estimate counts (tests/train/test_memory_at_size.py)."""

_NODE = 8


@dataclass(frozen=True)
class Choice:
    """What a step takes under some settings."""

    set: dict[str, Any]
    """Keys of [train] that differ from the config."""
    need: Need
    total: int
    """Bytes on each rank, at least: the sum of `need`, for programs that read --json."""
    card_gb: int | None
    """The smallest GPU that holds it."""


@dataclass(frozen=True)
class Memory:
    """What the longest sequences of a round may take."""

    tokens: int
    """Of the longest sequence that there can be."""
    processes: int
    precision: str
    choices: list[Choice]
    """As configured, then with ever more changed, as long as no small card holds it."""
    disk: int
    """Bytes of a round's checkpoints and policy."""


def memory_of(config: Config, arch: Architecture, longest: int) -> Memory | None:
    """What fits. None: the model beside the student is neither here nor on the hub.

    Args:
        arch: the student.
        longest: tokens of the longest sequence.

    Raises:
        ConfigError: the student cannot be split as [train] says.
        InputError: the trainer could not take the model beside the student.
    """
    train = config.train.on(cuda=True)
    check_layout(arch, train, ranks(train))
    which = objective_of(config).frozen_model(train)
    frozen = arch if which == "initial" else None
    if which == "teacher":
        try:
            folder = resolve_model(train.teacher, only="config.json")
        except InputError:
            return None
        frozen = read_config_json(folder, "teacher")
        check_layout(frozen, train, ranks(train), "teacher")
    choices = [_choice({}, train, arch, frozen, longest)]
    if choices[0].card_gb not in _CARDS_GB[:2]:
        changes = _changes(train, longest, lora=which != "teacher")
        choices += [_choice(change, train, arch, frozen, longest) for change in changes]
    return Memory(longest, ranks(train), train.precision, choices, checkpoint_bytes(arch, train))


def _choice(
    change: dict[str, Any], train: TrainConfig, arch: Architecture, frozen: Architecture | None, longest: int
) -> Choice:
    changed = train.model_copy(update=change)
    need = training_need(arch, changed, processes=ranks(changed), longest=longest, frozen=frozen, fused=True)
    card = next((size for size in _CARDS_GB if need.total < _COUNTED * size * 1e9), None)
    return Choice(change, need, need.total, card)


def _changes(train: TrainConfig, longest: int, *, lora: bool) -> list[dict[str, Any]]:
    """What one would try, each with what came before it; the gradient stays what it was, but for LoRA's."""
    changes: list[dict[str, Any]] = []
    so_far: dict[str, Any] = {}
    if train.micro_tokens is None and train.micro_batch > 1:
        changes.append(so_far := {"micro_batch": 1})
    elif train.micro_tokens is not None and train.micro_tokens >= 2 * longest:
        changes.append(so_far := {"micro_tokens": longest})
    if not train.recompute:
        changes.append(so_far := so_far | {"recompute": True})
    model_parallel = train.tensor_parallel * train.pipeline_parallel
    if not train.distributed_optimizer and ranks(train) > model_parallel:
        changes.append(so_far := so_far | {"distributed_optimizer": True})
    if train.lora is None and ranks(train) < _NODE and _NODE % (model_parallel * train.context_parallel) == 0:
        changes.append(so_far | {"processes": _NODE, "distributed_optimizer": True})
    if lora and train.lora is None:
        changes.append(so_far | {"lora": LoraConfig()})
    return changes


def told(memory: Memory | None, config: Config) -> list[str]:
    """Lines for people."""
    if memory is None:
        return [f"  memory   unknown: {config.train.teacher} is not here, and the hub did not give its config.json"]
    first, *others = memory.choices
    where = f"each of {memory.processes} GPUs" if memory.processes > 1 else "a GPU"
    lines = [
        f"  memory   a step on sequences of {memory.tokens:,} tokens, in {memory.precision}, takes at least"
        f" {gigabytes(first.total)} GB of {where} ({first.need}): {_card(first)}"
    ]
    lines += [f"           {gigabytes(other.total):>4} GB, {_card(other)}: {_set(other)}" for other in others]
    lines.append(f"  disk     {gigabytes(memory.disk)} GB of checkpoints and a policy while a round is trained")
    return lines


def _set(choice: Choice) -> str:
    return " ".join(f"--set {shlex.quote(_key(key, value))}" for key, value in choice.set.items())


def _key(key: str, value: Any) -> str:
    return f"train.{key}={toml_value({'rank': value.rank} if isinstance(value, LoraConfig) else value)}"


def _card(choice: Choice) -> str:
    return f"fits {choice.card_gb} GB" if choice.card_gb else f"none of up to {_CARDS_GB[-1]} GB holds it"
