"""Train one round: shards and a policy in, a new policy out. The loop, and what a crash must not break.

`train_round` may be killed at any moment and called again: it resumes from its newest checkpoint, and the policy that
comes out has the same bits. The policy folder appears under its name only when it is whole.
"""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ..method.objectives.registry import objective_of
from ..store.architecture import Architecture, check_layout
from ..store.config import Config, made_with
from ..store.errors import InputError, Interrupted
from ..store.layout import RoundDir, RunDir
from ..store.model import weights_hash
from ..store.sections import TrainConfig
from .checkpoint import Checkpoints, Position
from .columns import can_compile, missing_to_compile
from .data import COLUMNS, Sequences, lay_out, map_sequences, micro_batches, plan_steps
from .export import ADAPTERS
from .hf_model import load_weights
from .hf_weights import WeightFiles
from .inputs import Inputs, find_inputs, on_this_node
from .lora import add_adapters, load_adapters
from .memory import check_disk, check_memory, checkpoint_bytes, out_of_memory, training_need
from .metrics import BatchReport, MetricsLog, StepMetrics, step_metrics
from .model import Student, build
from .objective import loss_terms
from .parallel import (
    any_rank,
    few_threads,
    least_memory,
    model_parallel,
    on_device,
    on_each_node,
    on_first_rank,
    repeatable,
    share,
    world,
)
from .policy_folder import publish, write_policy
from .result import Progress, TrainResult, count_steps, result_of
from .share import padding_share
from .step import Learner
from .stop import on_sigterm
from .tensorboard import TensorBoard
from .trajectory_facts import TrajectoryFacts, trajectory_facts
from .weights import batch_facts

_ROWS_AT_A_TIME = 1024
"""Sequences held while they are laid out."""


@dataclass(frozen=True)
class _Prepared:
    """What rank 0 found out and got ready, for all ranks."""

    inputs: Inputs
    facts: TrajectoryFacts
    carried: str | None
    """Checkpoint of the round before whose optimizer state is carried over."""
    resume: str | None
    """Checkpoint of this round to resume from."""


@dataclass(frozen=True)
class _Data:
    """What a round trains on."""

    shards: Sequences
    trajectories: TrajectoryFacts


def train_round(
    run: RunDir, index: int, config: Config, progress: Progress | None = None, *,
    leaving: Callable[[], bool] = lambda: False, patience_s: float = 0.0,
) -> TrainResult:  # fmt: skip
    """Train round `index` of a run, or do nothing where its policy exists. Collective under torchrun.

    The optimizer's state is carried over from the round before (train.carry_optimizer). The first step of a round
    is on-policy; later ones weight the chunk term by the truncated importance ratio (train.importance_cap), and so
    does the first with train.off_policy.

    Args:
        run: the run; all ranks see its folder.
        index: the round.
        config: equal on all ranks.
        progress: called on rank 0 after each step.
        leaving: called on all ranks after each step, says the same on all: whether a machine is about to be taken away,
            so that a checkpoint is worth its time now.
        patience_s: how long to wait for a process that trains this round, which may be a dead one whose lock a file
            server has not freed yet.

    Raises:
        TableError: the shards are not finished, or damaged.
        InputError: shards, student or tokenizer cannot be used, or do not belong together; or the memory of a
            GPU does not suffice.
        ConfigError: the student cannot be split as [train] says.
        ConfigChangedError: the round was begun with other settings or inputs.
        BusyError: another process trains this round.
        Interrupted: SIGTERM came; a checkpoint was written after the step that was under way.
    """
    with contextlib.ExitStack() as stack:
        device = stack.enter_context(world())
        config = config.model_copy(update={"train": on_device(config.train, device)})
        stack.enter_context(repeatable(config.train))
        available = least_memory(device)
        on_first_rank(lambda: stack.enter_context(_held(run.round(index), patience_s)))
        prepared = on_first_rank(lambda: _prepare(run, index, config, available, device))
        if prepared is None:
            return result_of(run, index, trained=False)
        found = prepared.inputs
        prepared = replace(prepared, inputs=on_each_node(lambda: on_this_node(found, run, index, config)))
        stack.enter_context(model_parallel(config.train))
        data = _Data(map_sequences(_laid_out(run.round(index))), prepared.facts)
        try:
            _train(run, index, config, prepared, data, device, progress, leaving)
        except torch.OutOfMemoryError as error:
            raise out_of_memory(str(error), dist.get_rank()) from error
        return result_of(run, index, trained=True)


@contextlib.contextmanager
def _held(round_: RoundDir, patience_s: float) -> Generator[None]:
    """On rank 0 alone: the lock of the stage, and the removal of what is needed only while it is held."""
    with round_.lock("train", patience_s=patience_s):
        try:
            yield
        finally:
            shutil.rmtree(_laid_out(round_), ignore_errors=True)


def _prepare(run: RunDir, index: int, config: Config, available: int, device: torch.device) -> _Prepared | None:
    """On rank 0 alone, while it holds the lock: all that comes before the models are built. None: the round is trained
    already.

    Args:
        available: bytes that the rank with the least of them can have.
    """
    round_, train = run.round(index), config.train
    if round_.policy.is_dir():
        _forget(run, index - 1)
        return None
    inputs = find_inputs(run, index, config)
    ranks = dist.get_world_size()
    check_layout(inputs.arch, train, ranks)
    frozen = None if inputs.frozen is None else inputs.frozen.arch
    if frozen is not None:
        check_layout(frozen, train, ranks, "teacher")
    # The round's training sequences, laid out once for all ranks.
    folder = _laid_out(round_)
    lay_out(round_.shards.batches(_ROWS_AT_A_TIME, COLUMNS), inputs.arch.vocabulary, folder)
    shards = map_sequences(folder)
    longest = int(shards.lengths.max())
    fused = device.type == "cuda" and can_compile()
    if device.type == "cuda" and not fused:
        sys.stderr.write(
            f"Without {missing_to_compile()} kernels are not compiled: the loss takes about twice as long\n"
        )
    need = training_need(inputs.arch, train, processes=ranks, longest=longest, frozen=frozen, fused=fused)
    check_memory(need, available)
    check_disk(checkpoint_bytes(inputs.arch, train), shutil.disk_usage(round_.path).free, round_.path)
    facts = trajectory_facts(round_)
    round_.expect("train", count_steps(len(shards), train))
    carried = _carried(run, index, train)
    resume = _checkpoints(round_, train).begin(_made_with(round_, config, inputs, carried))
    return _Prepared(inputs, facts, carried, resume)


def _carried(run: RunDir, index: int, train: TrainConfig) -> str | None:
    """The checkpoint whose optimizer state this round takes over; None in the first round, and where there is none.

    Raises:
        InputError: there is none, and the float32 weights that bfloat16 rounds went with it.
    """
    if index == 0 or not train.carry_optimizer:
        return None
    previous = _previous(run, index)
    if (carried := previous.carries(train)) is not None:
        return carried
    why = (
        "is gone"
        if previous.latest() is None
        else "was made with another train.precision or train.distributed_optimizer"
    )
    lost = f"The last checkpoint of round {index - 1} {why}: the optimizer's state cannot be carried over"
    if train.precision == "bf16":
        raise InputError(
            f"{lost}, and its float32 weights with it, without which steps smaller than bfloat16's rounding are lost.",
            "Bring it back or set the key back, or set train.carry_optimizer = false to begin afresh from the rounded"
            " policy.",
        )
    sys.stderr.write(f"{lost}; it begins afresh\n")
    return None


def _laid_out(round_: RoundDir) -> Path:
    return round_.path / ".shards"


def _checkpoints(round_: RoundDir, train: TrainConfig) -> Checkpoints:
    return Checkpoints(round_.checkpoint, train.keep_checkpoints)


def _previous(run: RunDir, index: int) -> Checkpoints:
    return Checkpoints(run.round(index - 1).checkpoint)


def _train(
    run: RunDir, index: int, config: Config, prepared: _Prepared, data: _Data, device: torch.device,
    progress: Progress | None, leaving: Callable[[], bool],
) -> None:  # fmt: skip
    round_, train, inputs = run.round(index), config.train, prepared.inputs
    frozen = inputs.frozen
    if train.lora is None:
        policy = _student(inputs.arch, inputs.policy, train, device)
        reference = None if frozen is None else _student(frozen.arch, frozen.folder, train, device)
    else:
        policy = _student(inputs.arch, inputs.initial, train, device)
        add_adapters(policy, train)
        if index > 0:
            load_adapters(policy, run.round(index - 1).policy / ADAPTERS)
        reference = None if frozen is None else policy
    learner = Learner(policy, reference, train, device)
    if prepared.carried and not prepared.resume:
        _previous(run, index).load_optimizer(learner, prepared.carried)
    checkpoints = _checkpoints(round_, train)
    start = checkpoints.load(learner, prepared.resume) if prepared.resume else Position()

    asked = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.enter_context(few_threads(sum(parameter.numel() for parameter in policy.parameters())))
        stack.enter_context(on_sigterm(asked.set))
        report = _reporter(stack, run, index, start, train, progress) if dist.get_rank() == 0 else None
        for position, metrics, total in _steps(learner, data, config, start):
            if report is not None:
                report(position, metrics, total)
            stop = any_rank(asked.is_set(), device) and position.step < total
            due = position.step % train.checkpoint_every == 0 or position.step == total
            due |= leaving()
            # Without a single update there is no optimizer state to save, and nothing to lose.
            if (due or stop) and position.skipped < position.step:
                checkpoints.save(learner, position)
            if stop:
                raise Interrupted(
                    f"SIGTERM: stopped after step {position.step} of {total}, with a checkpoint.",
                    "Run the same command again to resume from there.",
                )

    write_policy(policy, train, inputs.initial, round_.policy)
    on_first_rank(lambda: _finish(run, index))


def _finish(run: RunDir, index: int) -> None:
    """On rank 0 alone: the policy gets its name."""
    MetricsLog(run, index).finish()
    # The name is the promise that the round is done, so everything else is in place before it.
    publish(run.round(index).policy)
    _forget(run, index - 1)


def _reporter(
    stack: contextlib.ExitStack, run: RunDir, index: int, start: Position, train: TrainConfig,
    progress: Progress | None,
) -> Callable[[Position, StepMetrics, int], None]:  # fmt: skip
    """What rank 0 does with the metrics of each step."""
    log = MetricsLog(run, index)
    log.rewind(start.step)
    board = TensorBoard(run, index, start.step)
    stack.callback(board.close)

    def report(position: Position, metrics: StepMetrics, total: int) -> None:
        log.append(metrics)
        board.log(metrics)
        if progress is not None:
            progress(position.step, total, asdict(metrics))

    return report


def _forget(run: RunDir, index: int) -> None:
    """Delete the checkpoints of a round whose successor is trained: its optimizer state has been carried on."""
    if index >= 0:
        Checkpoints(run.round(index).checkpoint).remove()


def _student(arch: Architecture, folder: Path, train: TrainConfig, device: torch.device) -> Student:
    student = build(arch, train, device)
    with WeightFiles(folder) as weights:
        load_weights(student, weights)
    return student


def _steps(
    learner: Learner, data: _Data, config: Config, position: Position
) -> Iterator[tuple[Position, StepMetrics, int]]:
    """Do the steps of a round from `position` on, yielding (position after the step, its metrics, steps in all)."""
    train, shards, objective = config.train, data.shards, objective_of(config)
    plan = plan_steps(
        len(shards), global_batch=train.global_batch, epochs=train.epochs, seed=train.seed, steps=train.steps
    )
    for step in range(position.step, len(plan)):
        start = time.perf_counter()
        tokens = shards.tokens_of(plan[step])
        facts = batch_facts(
            shards.loss_weight[tokens], shards.audited[tokens], shards.response[tokens],
            centre=config.score.centre if objective.may_centre else "none", normalise=train.normalise,
            anchored=objective.anchored, divided_by=objective.divided_by,
        )  # fmt: skip
        mine = share(train)
        batches = micro_batches(
            shards, plan[step], facts, mine, micro_batch=train.micro_batch, micro_tokens=train.micro_tokens,
            anchored=objective.anchored,
        )  # fmt: skip
        if train.lora is not None and train.lora.dropout:
            # Of the step alone, so that a round that resumes here draws the same.
            torch.manual_seed(train.seed << 32 | step)
        terms = loss_terms(train, facts, on_policy=step == 0 and not train.off_policy)
        sums = learner.gradients(batches, facts, terms)
        lr = train.lr * min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else train.lr
        norm, updated = learner.update(sums, lr)
        position = Position(step + 1, position.skipped + (not updated))
        batch = BatchReport(
            phi=data.trajectories.phi(plan[step]),
            reward=float(data.trajectories.reward[plan[step]].mean()),
            repetition=float(data.trajectories.repetition[plan[step]].mean()),
            response_tokens=float(shards.response[tokens].sum() / len(plan[step])),
            padding=padding_share(
                shards.lengths, plan[step], mine, micro_batch=train.micro_batch, micro_tokens=train.micro_tokens
            ),
            seconds=time.perf_counter() - start,
            tokens=len(tokens),
        )
        metrics = step_metrics(
            step, facts, sums, batch, terms, sampled=objective.samples_student, norm=norm, lr=lr, updated=updated
        )
        yield position, metrics, len(plan)


def _made_with(round_: RoundDir, config: Config, inputs: Inputs, carried: str | None) -> dict[str, Any]:
    """All that determines the new policy's bits, but for the layout.

    Raises:
        InputError: another policy than the one to be trained sampled the trajectories, and train.off_policy is off.
    """
    policy = weights_hash(inputs.policy)
    # The trajectories may have stayed on the machine that sampled them; where they are here, they must fit.
    sampled_by = set(round_.trajectories.read(["policy"])["policy"].unique().to_pylist())
    if sampled_by - {policy} and not config.train.off_policy:
        raise InputError(
            f"The trajectories of {round_.path} were sampled by the weights {sorted(sampled_by)[0]}, and the policy"
            f" to train, {inputs.policy}, has the weights {policy}.",
            "Put back the policy that sampled them, delete the round and generate it again, or set train.off_policy.",
        )
    return made_with(config, "policy") | {
        "policy": policy,
        "reference": weights_hash(inputs.initial if inputs.frozen is None else inputs.frozen.folder),
        "optimizer": carried or "fresh",
        "shards": [part.sha256 for part in round_.shards.manifest.parts],
    }
