"""Checkpoints inside a round: a killed trainer resumes as if nothing had happened, bit for bit.

    checkpoint/made_with.json       settings and inputs that the checkpoints belong to
    checkpoint/latest               name of the newest whole checkpoint
    checkpoint/step=000050/...      Megatron distributed checkpoint: weights, optimizer, RNG, position

A checkpoint is written and synced before `latest` names it; one that `latest` does not name, or that is older than
the newest `train.keep_checkpoints`, is deleted. The layout (tensor, pipeline, context and data parallelism) may change
between two runs, but not whether the optimizer is distributed: Megatron's formats differ.

The last one of a round outlives it: the next round takes the optimizer's state from it.
"""

import os
import queue
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _write_item
from torch.distributed.checkpoint.planner import SavePlanner
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ..store import files
from ..store.errors import ConfigChangedError, InputError
from ..store.sections import TrainConfig
from ..store.storage import storing
from . import mcore
from .lora import sharded_adapters
from .mcore import parallel_state as mpu
from .parallel import patient_group, wait_for_all
from .split_state import after_loading, split_part, split_state
from .step import Learner


@dataclass(frozen=True)
class Position:
    """How far a round is."""

    step: int = 0
    """Steps done, skipped ones included; also the position in the data."""
    skipped: int = 0
    """Steps whose loss or gradient was not finite."""


class Checkpoints:
    """The checkpoint folder of one round."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """
        Args:
            folder: where they are.
            keep: how many are kept.
        """
        self.folder = folder
        self.keep = keep

    # -- on rank 0 alone

    def begin(self, made_with: Mapping[str, Any]) -> str | None:
        """Get ready to train: the name of the checkpoint to resume from, or None to start.

        Args:
            made_with: settings and hashes of inputs that determine the weights.

        Raises:
            ConfigChangedError: there is a checkpoint, and it was made with something else.
            InputError: the checkpoint that `latest` names is missing.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        record = self.folder / "made_with.json"
        latest = self.latest()
        if latest is None:
            files.write_text(record, orjson.dumps(made_with, option=orjson.OPT_INDENT_2).decode() + "\n")
        else:
            self._refuse_changes(orjson.loads(record.read_bytes()), made_with)
        self._prune()
        return latest

    def latest(self) -> str | None:
        """Name of the newest whole checkpoint, or None.

        Raises:
            InputError: it is missing.
        """
        pointer = self.folder / "latest"
        if not pointer.is_file():
            return None
        name = pointer.read_text(encoding="utf-8").strip()
        if not (self.folder / name).is_dir():
            raise InputError(
                f"{pointer} names {name}, which is missing.",
                f"Restore it, or delete {self.folder} to train the round again from its start.",
            )
        return name

    def carries(self, train: TrainConfig) -> str | None:
        """Name of the checkpoint whose optimizer state a next round with these settings can take over, or None."""
        latest = self.latest()
        if latest is None:
            return None
        made_with = orjson.loads((self.folder / "made_with.json").read_bytes())
        same = made_with["train.precision"] == train.precision
        same &= made_with["train.distributed_optimizer"] == train.distributed_optimizer
        same &= (made_with.get("train.lora") is None) == (train.lora is None)
        return latest if same else None

    def _refuse_changes(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        # Compare what JSON makes of both: a tuple there and a list here are the same.
        now = orjson.loads(orjson.dumps(now))
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if keys:
            changes = ", ".join(f"{key} from {before.get(key)!r} to {now.get(key)!r}" for key in keys)
            raise ConfigChangedError(
                f"The config or the input changed under {self.folder}, in the middle of a round: {changes}.",
                f"Set it back, or delete {self.folder} to train the round again from its start.",
            )

    def _prune(self) -> None:
        latest = self.latest()
        names = sorted(path.name for path in self.folder.glob("step=*"))
        whole = [name for name in names if latest is not None and name <= latest]
        for name in set(names) - set(whole[-self.keep :]):
            shutil.rmtree(self.folder / name)

    def remove(self) -> None:
        """Delete all checkpoints; they have served their purpose once the next round's policy is whole."""
        # `latest` goes first: without it the rest counts for nothing, should this be cut short.
        (self.folder / "latest").unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    # -- on all ranks together

    def save(self, learner: Learner, position: Position) -> None:
        """Write a checkpoint and make it the latest. Collective; durable when it returns."""
        name = f"step={position.step:06d}"
        target = self.folder / name
        if dist.get_rank() == 0:
            target.mkdir()
        wait_for_all()
        with storing(target):
            state = _state(learner, position, loading=False)
            mcore.dist_checkpointing.save(state, str(target), _TensorByTensor("torch_dist", 1))
        if dist.get_rank() == 0:
            files.sync_files(target)
            files.write_text(self.folder / "latest", name + "\n")
            self._prune()
        wait_for_all()

    @torch.no_grad()
    def load(self, learner: Learner, name: str) -> Position:
        """Put a checkpoint's weights, optimizer state and random state in place. Collective."""
        state = self._load(learner, name, {"model", "optimizer", "rng", "step", "skipped"})
        learner.policy.load_state_dict(state["model"], strict=learner.config.lora is None)
        _give_optimizer(learner, state["optimizer"])
        torch.set_rng_state(state["rng"])
        return Position(state["step"], state["skipped"])

    @torch.no_grad()
    def load_optimizer(self, learner: Learner, name: str) -> None:
        """Put a checkpoint's optimizer state in place, and keep the policy's weights. Collective."""
        _give_optimizer(learner, self._load(learner, name, {"optimizer"})["optimizer"])

    def _load(self, learner: Learner, name: str, keys: set[str]) -> dict[str, Any]:
        wanted = _state(learner, Position(), loading=True)
        wanted = {key: value for key, value in wanted.items() if key in keys}
        state: Any = mcore.dist_checkpointing.load(wanted, str(self.folder / name))
        return state


class _TensorByTensor(mcore.checkpoint_strategies.TorchDistSaveShardedStrategy):
    """Megatron's checkpoint, but what is on a GPU comes to the host a tensor at a time.

    Megatron's writer copies all of a rank's tensors first, for processes that it forks to write them.
    """

    def save(self, sharded_state_dict: Any, checkpoint_dir: Any) -> None:
        strategies = mcore.checkpoint_strategies
        state, _, _ = strategies._replace_state_dict_keys_with_sharded_keys(sharded_state_dict, True)
        save(
            strategies.mcore_to_pyt_state_dict(state),
            storage_writer=_Writer(checkpoint_dir),
            planner=strategies.MCoreSavePlanner(flatten_state_dict=False),
            process_group=patient_group(),  # a slow disk is no reason to give up
        )


class _Writer(FileSystemWriter):
    """torch's writer, but that it lets go of a tensor once it is written.

    torch's keeps all tensors of a file until the file is whole (for safetensors, which this is not): from a GPU that is
    a copy of a rank's whole state in page-locked memory, each tensor rounded up to a power of two.
    """

    def _write_data(self, planner: SavePlanner, file_queue: "queue.Queue[Any]") -> Future[list[WriteResult]]:
        results: list[WriteResult] = []
        while not file_queue.empty():
            path, key, items = file_queue.get()
            with self.fs.create_stream(path, "wb") as stream:
                for item in items:
                    results.append(
                        _write_item(
                            self.transforms, stream, _on_host(planner.resolve_data(item)), item, key,
                            self.serialization_format,
                        )
                    )  # fmt: skip
                stream.flush()
                os.fsync(stream.fileno())
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


def _on_host(data: Any) -> Any:
    """A tensor as it is written: on the CPU, and nothing behind it that is not its own. Bytes stay as they are."""
    if not isinstance(data, torch.Tensor):
        return data
    host = data.detach().cpu()
    return host if host.untyped_storage().nbytes() == host.nbytes else host.clone()


def _state(learner: Learner, position: Position, *, loading: bool) -> dict[str, Any]:
    metadata: dict[str, Any] = {"dp_cp_group": mpu.get_data_parallel_group(with_context_parallel=True)}
    policy, optimizer = learner.policy, learner.optimizer
    model = sharded_adapters(policy) if learner.config.lora else policy.sharded_state_dict(metadata=metadata)
    part = split_part(optimizer)
    return {
        "model": model,
        "optimizer": _counted_on_host(optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata))
        if part is None
        else split_state(part, model, loading=loading),
        "rng": torch.get_rng_state(),
        "step": position.step,
        "skipped": position.skipped,
    }


def _counted_on_host(state: dict[str, Any]) -> dict[str, Any]:
    """The state with its step on the host, where fused AdamW counts on the GPU. Megatron sends it to all ranks to be
    compared, and unpickling it would give each of them a CUDA context, half a gigabyte, on rank 0's GPU."""
    moments = state.get("optimizer", state)["state"]  # in bfloat16 beside the float32 weights
    if "common_step" in moments:
        moments["common_step"] = moments["common_step"].cpu()
    return state


def _give_optimizer(learner: Learner, state: dict[str, Any]) -> None:
    """Give the optimizer what was loaded; tensors of a split one are in their places already."""
    part = split_part(learner.optimizer)
    if part is None:
        learner.optimizer.load_state_dict(state)
    else:
        after_loading(part, state["settings"])
