"""What a checkpoint takes in memory, and how a split optimizer's state comes to be whole parameters on the disk."""

import pickle
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from omniopd.store.architecture import Architecture
from omniopd.store.layout import RunDir
from omniopd.store.sections import TrainConfig
from omniopd.train import mcore
from omniopd.train.checkpoint import Checkpoints, Position
from omniopd.train.launch import launch
from omniopd.train.model import build
from omniopd.train.parallel import model_parallel, world
from omniopd.train.split_state import _rectangles
from omniopd.train.step import Learner, StepSums
from support import training as kit

CPU = torch.device("cpu")


def learner(train: TrainConfig) -> Learner:
    """A policy of 21 million parameters after a step."""
    arch = Architecture("qwen3", 4, 512, 1536, 8, 4, 64, 16384, 4096, True, 1e-6, 1e6, None)
    policy = build(arch, train, CPU)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(0, 0.02)
    made = Learner(policy, None, train, CPU)
    update(made, 1e-3)
    return made


def update(made: Learner, lr: float) -> None:
    """A step on gradients that are the same each time."""
    made.ddp.zero_grad_buffer()
    generator = torch.Generator().manual_seed(1)
    for parameter in made.policy.parameters():
        parameter.main_grad.normal_(generator=generator)  # pyright: ignore[reportAttributeAccessIssue]
    made.update(StepSums(*[0.0] * 7), lr)


def resident(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def risen(before: int) -> int:
    """Highest resident memory since `clear_refs` was written to, above `before`."""
    return resident("VmHWM") - before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("distributed", [False, True])
def test_a_checkpoint_takes_at_most_one_and_a_half_times_the_optimizer_s_state_in_memory(
    tmp_path: Path, precision: str, distributed: bool
) -> None:
    train = TrainConfig.model_validate({"precision": precision, "distributed_optimizer": distributed}).on(cuda=False)
    with world(), model_parallel(train):
        made = learner(train)
        checkpoints = Checkpoints(tmp_path / "c")
        checkpoints.begin({})
        count = sum(parameter.numel() for parameter in made.policy.parameters())
        limit = 1.5 * (8 if precision == "fp32" else 12) * count
        for work in (
            lambda: checkpoints.save(made, Position(1)),
            lambda: checkpoints.load(made, "step=000001"),
        ):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
            before = resident("VmRSS")
            work()
            assert risen(before) < limit
        files = [path.stat().st_size for path in (tmp_path / "c").rglob("*.distcp")]
        expected = (12 if precision == "fp32" else 14) * count
        assert sum(files) == pytest.approx(expected, rel=0.01), "what check_disk counts on"


def test_a_tensor_that_is_written_is_let_go_of_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # From a GPU each of them is a copy.
    train = TrainConfig.model_validate({"precision": "fp32"}).on(cuda=False)
    written: list[weakref.ref[torch.Tensor]] = []
    kept: list[int] = []
    save = torch.save

    def seen(data: Any, *args: Any, **kwargs: Any) -> None:
        if isinstance(data, torch.Tensor):
            kept.append(sum(tensor() is not None for tensor in written))
            written.append(weakref.ref(data))
        save(data, *args, **kwargs)

    with world(), model_parallel(train):
        made = learner(train)
        checkpoints = Checkpoints(tmp_path / "c")
        checkpoints.begin({})
        monkeypatch.setattr(torch, "save", seen)
        checkpoints.save(made, Position(1))
    assert len(written) >= 3 * len(list(made.policy.parameters())), "weights and two moments"
    assert max(kept) == 0


class OnGpu(torch.Tensor):
    """As far as it matters here."""

    def cpu(self, *_: Any) -> torch.Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.as_subclass(torch.Tensor)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("distributed", [False, True])
def test_nothing_that_is_on_a_gpu_is_pickled_to_be_sent_to_other_ranks(
    tmp_path: Path, precision: str, distributed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []
    broadcast = dist.broadcast_object_list

    def seen(object_list: list[Any], *args: Any, **kwargs: Any) -> None:
        sent.append(pickle.dumps(object_list))
        broadcast(object_list, *args, **kwargs)

    train = TrainConfig.model_validate({"precision": precision, "distributed_optimizer": distributed}).on(cuda=False)
    with world(), model_parallel(train):
        made = learner(train)
        (part,) = made.optimizer.chained_optimizers  # pyright: ignore[reportAttributeAccessIssue]
        for state in part.optimizer.state.values():
            state["step"] = state["step"].as_subclass(OnGpu)  # where fused AdamW counts
        checkpoints = Checkpoints(tmp_path / "c")
        checkpoints.begin({})
        monkeypatch.setattr(dist, "broadcast_object_list", seen)
        checkpoints.save(made, Position(1))
    assert sent
    assert not any(b"OnGpu" in pickled for pickled in sent)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loaded_split_optimizer_has_the_bits_and_the_step_of_the_saved_one(tmp_path: Path, precision: str) -> None:
    train = TrainConfig.model_validate({"precision": precision, "distributed_optimizer": True}).on(cuda=False)

    def state(made: Learner) -> list[torch.Tensor]:
        (part,) = made.optimizer.chained_optimizers  # pyright: ignore[reportAttributeAccessIssue]
        masters = [p for group in part.optimizer.param_groups for p in group["params"]]
        moments = [value.clone() for p in masters for value in part.optimizer.state[p].values()]
        return [
            *(p.detach().clone() for p in masters),
            *moments,
            *(p.detach().clone() for p in made.policy.parameters()),
        ]

    with world(), model_parallel(train):
        saved = learner(train)
        checkpoints = Checkpoints(tmp_path / "c")
        checkpoints.begin({})
        checkpoints.save(saved, Position(1, 0))
        fresh = learner(train)
        update(fresh, 1e-2)  # somewhere else, two steps on
        assert not all(map(torch.equal, state(fresh), state(saved)))
        assert checkpoints.load(fresh, "step=000001") == Position(1, 0)
        assert all(map(torch.equal, state(fresh), state(saved)))
        for made in (saved, fresh):
            update(made, 1e-3)
        assert all(map(torch.equal, state(fresh), state(saved))), "and each parameter has a counter of its own"


@given(st.data())
def test_the_rectangles_of_a_flat_range_are_where_the_whole_parameter_has_these_elements(data: Any) -> None:
    rows, columns, layers = (data.draw(st.integers(1, 6)) for _ in range(3))
    vector, gated = data.draw(st.booleans()), data.draw(st.booleans())
    shape = (rows,) if vector else (rows, columns)
    parts = 2 if gated else 1  # a gate and an up projection, one behind the other in the whole one
    layer = data.draw(st.integers(0, layers - 1))
    numel = int(np.prod(shape))
    start = data.draw(st.integers(0, parts * numel - 1))
    stop = data.draw(st.integers(start + 1, parts * numel))
    whole = [
        mcore.ShardedTensor.from_rank_offsets(
            "key", torch.empty(shape), (0, layer, layers), (1, part, parts), prepend_axis_num=1
        )
        for part in range(parts)
    ]
    flat = torch.arange(float(start), float(stop))
    stored = np.full((layers, parts * rows, *shape[1:]), -1.0)
    taken = list(_rectangles(whole, flat, start, stop))
    assert len(taken) <= 3 * parts
    for tensor in taken:
        tensor.validate_metadata_integrity()
        assert tensor.global_shape == stored.shape
        at = tuple(slice(o, o + s) for o, s in zip(tensor.global_offset, tensor.local_shape, strict=True))
        assert (stored[at] == -1).all(), "nothing twice"
        stored[at] = tensor.data.numpy()
    expected = np.full(parts * numel, -1.0)
    expected[start:stop] = np.arange(start, stop)
    assert (stored[layer].reshape(-1) == expected).all()
    assert (np.delete(stored, layer, 0) == -1).all()


@pytest.mark.slow
@pytest.mark.parametrize("layout", [[], ["train.tensor_parallel=2"], ["train.lora={ rank = 2 }"]])
def test_a_round_takes_over_the_split_state_that_two_ranks_wrote(
    tmp_path: Path, students: Callable[[str], Path], layout: list[str]
) -> None:
    adapters = [setting for setting in layout if "lora" in setting]
    runs = [RunDir(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        kit.write_toml(run, kit.make_config(students("qwen3"), distributed_optimizer=True))
        for index in (0, 1):
            alone = run is runs[0] or index == 1
            sets = adapters if alone else ["train.processes=2", *layout]
            config = run.config(tuple(sets))
            if index == 1:
                # Of the same weights in both runs, or the check of who sampled would end it.
                config = config.model_copy(update={"train": config.train.model_copy(update={"off_policy": True})})
            kit.write_round(run, index, config, kit.shard_rows(8, seed=index))
            launch(run, index, config, sets)
            if not alone:
                files = [path.stat().st_size for path in run.round(0).checkpoint.glob("step=000002/*.distcp")]
                # 4 of the 12 bytes are the weights, which the first rank writes.
                assert len(files) == 2
                assert min(files) > 0.25 * sum(files), "each rank writes its own"
    one, two = (load_file(run.round(1).policy / "model.safetensors") for run in runs)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=2e-5)
