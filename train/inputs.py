"""The models that a round starts from: found and checked on one rank, then found again on every machine."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch.distributed as dist

from ..method.objectives.registry import objective_of
from ..store.architecture import (
    Architecture,
    check_same_tokens,
    check_student,
    check_tokenizer,
    check_weights,
    weight_shapes,
)
from ..store.config import Config
from ..store.errors import ConfigError, InputError
from ..store.layout import RunDir
from ..store.model import found_here, load_tokenizer, resolve_model
from ..store.reference import check_reference
from .export import ADAPTERS
from .lora import check_adapters


@dataclass(frozen=True)
class Frozen:
    """A model that is not trained."""

    folder: Path
    arch: Architecture


@dataclass(frozen=True)
class Inputs:
    """The models that a round starts from."""

    policy: Path
    initial: Path
    """The initial student: model of the files beside the weights."""
    arch: Architecture
    frozen: Frozen | None
    """What the objective holds the policy to: the initial student in every round (Eq. 8), or the teacher (opd)."""


def find_inputs(run: RunDir, index: int, config: Config) -> Inputs:
    """Check that the shards are there, and find and check the student and the round's starting policy."""
    run.round(index).shards.require(f"omniopd score {run.path} --round {index}")
    check_reference(run, index, config)
    initial = resolve_model(config.student.model)
    if index > 0 and not run.round(index - 1).policy.is_dir():
        raise InputError(
            f"Round {index - 1} has no policy yet, and round {index} starts from it.",
            f"Run `omniopd train {run.path} --round {index - 1}` first.",
        )
    policy = resolve_model(run.policy_for(index, config))
    arch = check_student(initial)
    check_tokenizer(arch, load_tokenizer(initial), initial)
    if policy != initial:
        check_weights(arch, weight_shapes(policy), policy)
    which = objective_of(config).frozen_model(config.train)
    if which == "teacher" and config.train.lora is not None:
        raise ConfigError(
            f"train.objective = {config.train.objective} holds the policy to a teacher's weights, and train.lora to its"
            " own without the adapters.",
            "Unset train.lora, or choose another objective.",
        )
    if index > 0 and config.train.lora is not None:
        check_adapters(run.round(index - 1).policy / ADAPTERS, config.train.lora, initial)
    if which == "teacher":
        teacher = resolve_model(config.train.teacher)
        teacher_arch = check_student(teacher, "teacher")
        check_same_tokens(initial, teacher)
        if teacher_arch.vocabulary != arch.vocabulary:
            raise InputError(
                f"The teacher {teacher} has {teacher_arch.vocabulary} rows in its head, and the student"
                f" {arch.vocabulary}.",
                "Choose a teacher of the student's family.",
            )
        return Inputs(policy, initial, arch, Frozen(teacher, teacher_arch))
    return Inputs(policy, initial, arch, Frozen(initial, arch) if which else None)


def on_this_node(inputs: Inputs, run: RunDir, index: int, config: Config) -> Inputs:
    """The same models in the folders of this machine, whose cache of the hub may be its own. First rank of a machine.

    Raises:
        InputError: it does not have them, or does not get them from the hub.
    """
    if dist.get_rank() == 0:
        return inputs
    initial, frozen = found_here(config.student.model, inputs.initial), inputs.frozen
    policy = found_here(run.policy_for(index, config), inputs.policy) if inputs.policy != inputs.initial else initial
    if frozen is not None:
        teacher = frozen.folder != inputs.initial
        frozen = replace(frozen, folder=found_here(config.train.teacher, frozen.folder) if teacher else initial)
    return replace(inputs, policy=policy, initial=initial, frozen=frozen)
